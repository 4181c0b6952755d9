"""The positions of image patches among the tokens of transformers' models."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.capture import method_patched
from glowmap.inputs import Batch, PatchPositions
from glowmap.models.model import AroundForward
from glowmap.models.transformers.images import image_token

# The image tokens of these are patches, or merged patches, row by row. Others use queries, or add tokens at the end of a row.
_PATCHES_BY_ROW = {
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
}


def patch_positions_of(module: Any) -> Callable[[Batch], PatchPositions | None]:
    """Return the function that finds the patches of a batch among its tokens; it returns None where they are unknown."""
    names = {kind.__name__ for kind in type(module).__mro__}
    if "ViltPreTrainedModel" in names:
        encoder = _outermost(module, "encoder")
        return lambda batch: _after_words(encoder, int(module.config.patch_size), batch)
    if names & _PATCHES_BY_ROW:
        text_model, token = _outermost(module, "language_model", "text_model"), image_token(module)
        return lambda batch: _at_image_tokens(text_model, token, batch)
    return lambda _: None


def ordered_patches(module: nn.Module) -> AroundForward:
    """Return a context that keeps ViLT's patches in order, and restores what Qwen's models store outside their buffers."""
    embeddings = [part for part in module.modules() if type(part).__name__ == "ViltEmbeddings"]
    with_state = [part for part in module.modules() if "rope_deltas" in vars(part)]
    if not (embeddings or with_state):
        return lambda _: nullcontext()

    @contextmanager
    def entered(_module: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for part in embeddings:
                stack.enter_context(_sorted_by_row(part))
            for part in with_state:  # Qwen's position offsets of the last text
                stack.callback(setattr, part, "rope_deltas", vars(part)["rope_deltas"])
            yield

    return entered


def _outermost(module: nn.Module, *names: str) -> str:
    """Return the dotted name of the outermost part with one of these names."""
    parts = [part for part, _ in module.named_modules() if part.rpartition(".")[2] in names]
    return min(parts, key=lambda part: part.count("."), default=names[0])


def _at_image_tokens(part: str, token: int | None, batch: Batch) -> PatchPositions | None:
    """Find the image tokens; None unless they follow each other at the same positions in all images."""
    tokens = batch.keywords.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or token is None:
        return None
    is_image = tokens.eq(token)
    positions = is_image[0].nonzero()[:, 0].tolist()
    is_contiguous = bool(positions) and positions[-1] - positions[0] + 1 == len(positions)
    if not is_contiguous or not bool((is_image == is_image[0]).all()):
        return None
    return PatchPositions(part, tokens.shape[1], positions[0], len(positions))


def _after_words(part: str, patch: int, batch: Batch) -> PatchPositions | None:
    """Find ViLT's patches, which follow the words and a class token."""
    tokens, images = batch.keywords.get("input_ids"), batch.images
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or batch.keywords.get("pixel_mask") is not None:
        return None
    before, cells = tokens.shape[1] + 1, (images.shape[-2] // patch) * (images.shape[-1] // patch)
    return PatchPositions(part, before + cells, before, cells)


@contextmanager
def _sorted_by_row(embeddings: Any) -> Iterator[None]:
    """Sort ViLT's patches by rows, padding last; the model itself shuffles them in each pass."""

    def visual_embed(original: Any, *arguments: Any, **keywords: Any) -> Any:
        tokens, mask, (places, grid) = original(*arguments, **keywords)
        rank = places[..., 0] * (int(places.max()) + 1) + places[..., 1]
        order = (rank + (mask[:, 1:] == 0) * (rank.max() + 1)).argsort(1)
        patches, patch_mask = (values[:, 1:].gather(1, _expanded(order, values)) for values in (tokens, mask))
        sorted_places = places.gather(1, _expanded(order, places))
        tokens, mask = torch.cat([tokens[:, :1], patches], 1), torch.cat([mask[:, :1], patch_mask], 1)
        return tokens, mask, (sorted_places, grid)

    with method_patched(embeddings, "visual_embed", visual_embed):
        yield


def _expanded(order: Tensor, values: Tensor) -> Tensor:
    """Expand an order, image x patch, over the further axes of ``values``."""
    return order.reshape(*order.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
