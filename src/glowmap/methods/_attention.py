"""Attention as methods see it: every block's weights, and which tokens are the picture's patches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.shapes import RawMaps


@dataclass(frozen=True, eq=False)
class Block:
    """One attention: how strongly each token of one sequence attends to each token of the same or another sequence.

    ``weights`` are batch x head x queries x keys, the other tensors batch x head x tokens x channel. Sequences have numbers:
    the queries come from ``query_sequence``, the keys and values from ``key_sequence``. ``inputs`` are the numbers of the
    blocks that this one is computed from directly, with no other block between.
    """

    weights: Tensor
    queries: Tensor | None  # None where the scores are not a plain product of queries and keys
    keys: Tensor | None
    values: Tensor
    query_sequence: int
    key_sequence: int
    inputs: frozenset[int]


@dataclass(frozen=True, eq=False)
class Attention:
    """All blocks of a model in order, the number of the sequence with the patches, and which of its tokens they are."""

    model: str
    blocks: Sequence[Block]
    patch_sequence: int
    patches: slice
    grid: tuple[int, ...]

    def maps(self, tokens: Tensor) -> RawMaps:
        """Arrange a value per token, batch x tokens, as maps, batch x grid."""
        return tokens[:, self.patches].reshape(len(tokens), *self.grid)

    def last_used(
        self, output_gradients: Sequence[Tensor], *, queries: int | None = None, keys: int | None = None
    ) -> int:
        """Find the last block that the score depends on, among those with these query and key sequences.

        Raises MethodError where there is none.
        """
        for number in reversed(range(len(self.blocks))):
            block = self.blocks[number]
            fits = queries in (None, block.query_sequence) and keys in (None, block.key_sequence)
            if fits and bool(output_gradients[number].any()):
                return number
        raise MethodError(
            f"the score depends on no attention over the patches in {self.model}; look for a head of zeros or a saturated score"
        )

    def readout(self, gradients: Tensor) -> Tensor:
        """Compute how strongly the score reads each token, batch x tokens with the sum 1, from the gradient at a block's output.

        Raises MethodError for an image whose score depends on no token.
        """
        strength: Tensor = torch.linalg.vector_norm(gradients.transpose(1, 2).flatten(2), dim=2)
        total = strength.sum(1, keepdim=True)
        unread = [str(image) for image, is_zero in enumerate((total == 0).flatten().tolist()) if is_zero]
        if unread:
            raise MethodError(
                f"the score of image {', '.join(unread)} depends on no token of the last block of {self.model}, so that no row "
                "of its attention can be read out; look for a head of zeros or a saturated score"
            )
        return strength / total
