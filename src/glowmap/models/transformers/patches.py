"""Where transformers' models have a picture's patches among words: told by their input, and kept in order where it is drawn."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.capture import method_patched
from glowmap.inputs import Batch, PatchPositions
from glowmap.models.transformers.images import image_token

# Whose tokens of a picture are its patches, or patches merged, row by row; others have queries or newlines in their place.
_IN_ROWS = (
    "LlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)


def among_of(module: Any) -> Callable[[Batch], PatchPositions | None]:
    """Give what tells where the patches stand in a batch, for a model of which that is known."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    if "ViltPreTrainedModel" in kinds:
        part = _name(module, "encoder")
        return lambda batch: _behind_words(part, int(module.config.patch_size), batch)
    if kinds & {*_IN_ROWS}:
        part, token = _name(module, "language_model", "text_model"), image_token(module)
        return lambda batch: _in_the_place_of(part, token, batch)
    return lambda _: None


def lending_of(module: nn.Module) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Give what keeps a model's patches in their order while it is borrowed, and gives back what it notes beside its buffers."""
    embeddings = [part for part in module.modules() if type(part).__name__ == "ViltEmbeddings"]
    noting = [part for part in module.modules() if "rope_deltas" in vars(part)]
    if not (embeddings or noting):
        return lambda _: nullcontext()

    @contextmanager
    def lent(_module: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for part in embeddings:
                stack.enter_context(_in_order(part))
            for part in noting:  # Qwen's of the last text that it read
                stack.callback(setattr, part, "rope_deltas", vars(part)["rope_deltas"])
            yield

    return lent


def _name(module: nn.Module, *lasts: str) -> str:
    """Find the outermost part with such a name."""
    found = [name for name, _ in module.named_modules() if name.rpartition(".")[2] in lasts]
    return min(found, key=lambda name: name.count("."), default=lasts[0])


def _in_the_place_of(part: str, token: int | None, batch: Batch) -> PatchPositions | None:
    """Find the picture's tokens, which stand in one row and at the same place in all images, or cannot be told."""
    words = batch.keywords.get("input_ids")
    if not isinstance(words, Tensor) or words.ndim != 2 or token is None:
        return None
    own = words.eq(token)
    places = own[0].nonzero()[:, 0].tolist()
    if not places or places[-1] - places[0] + 1 != len(places) or not bool((own == own[0]).all()):
        return None
    return PatchPositions(part, words.shape[1], places[0], len(places))


def _behind_words(part: str, patch: int, batch: Batch) -> PatchPositions | None:
    """Find ViLT's patches: behind the words and a class token."""
    words, images = batch.keywords.get("input_ids"), batch.images
    if not isinstance(words, Tensor) or words.ndim != 2 or batch.keywords.get("pixel_mask") is not None:
        return None
    before, cells = words.shape[1] + 1, (images.shape[-2] // patch) * (images.shape[-1] // patch)
    return PatchPositions(part, before + cells, before, cells)


@contextmanager
def _in_order(embeddings: Any) -> Iterator[None]:
    """Let ViLT have its patches row by row, those of padding last; it draws their order anew in each pass."""

    def visual_embed(original: Any, *arguments: Any, **keywords: Any) -> Any:
        tokens, mask, (places, grid) = original(*arguments, **keywords)
        rank = places[..., 0] * (int(places.max()) + 1) + places[..., 1]
        order = (rank + (mask[:, 1:] == 0) * (rank.max() + 1)).argsort(1)
        patches, shown = (one[:, 1:].gather(1, _wide(order, one)) for one in (tokens, mask))
        ordered = places.gather(1, _wide(order, places))
        return torch.cat([tokens[:, :1], patches], 1), torch.cat([mask[:, :1], shown], 1), (ordered, grid)

    with method_patched(embeddings, "visual_embed", visual_embed):
        yield


def _wide(order: Tensor, one: Tensor) -> Tensor:
    return order.reshape(*order.shape, *[1] * (one.ndim - 2)).expand(-1, -1, *one.shape[2:])
