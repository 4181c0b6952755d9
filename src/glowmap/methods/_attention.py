"""Attention as methods see it: every block's weights, and which tokens are the picture's patches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.shapes import RawMaps


@dataclass(frozen=True, eq=False)
class Block:
    """One attention: how strongly each token of one sequence looks at each of the same or another sequence.

    ``weights`` are batch x head x queries x keys, the others batch x head x tokens x channel. ``of`` and ``over`` number the
    sequences that ask and are asked, and ``after`` the blocks that it is computed from, no other between.
    """

    weights: Tensor
    queries: Tensor | None  # unknown where scores are no plain product of queries and keys
    keys: Tensor | None
    values: Tensor
    of: int
    over: int
    after: frozenset[int]


@dataclass(frozen=True, eq=False)
class Attention:
    """All blocks in their order, the number of the sequence that holds the patches, and which of its tokens they are."""

    model: str
    blocks: Sequence[Block]
    patched: int
    patches: slice
    grid: tuple[int, ...]

    def maps(self, tokens: Tensor) -> RawMaps:
        """Lay a value a token, batch x tokens, out as maps."""
        return tokens[:, self.patches].reshape(len(tokens), *self.grid)

    def last_read(self, output_gradients: Sequence[Tensor], *, of: int | None = None, over: int | None = None) -> int:
        """Find the last block, of a sequence or over one, whose output the score depends on; MethodError where there is none."""
        for number in reversed(range(len(self.blocks))):
            block = self.blocks[number]
            fits = of in (None, block.of) and over in (None, block.over)
            if fits and bool(output_gradients[number].any()):
                return number
        raise MethodError(
            f"the score depends on no attention over the patches in {self.model}; look for a head of zeros or a saturated score"
        )

    def reading(self, gradients: Tensor) -> Tensor:
        """Tell how strongly the score reads each token, batch x tokens that add up to 1, by the gradient at a block's output."""
        strength: Tensor = torch.linalg.vector_norm(gradients.transpose(1, 2).flatten(2), dim=2)
        total = strength.sum(1, keepdim=True)
        unread = [str(image) for image, nothing in enumerate((total == 0).flatten().tolist()) if nothing]
        if unread:
            raise MethodError(
                f"the score of image {', '.join(unread)} depends on no token of the last block of {self.model}, so that no row "
                "of its attention can be read out; look for a head of zeros or a saturated score"
            )
        return strength / total
