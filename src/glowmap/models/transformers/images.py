"""Images for transformers' models that take them as patches or tiles instead of rows and columns.

Models of the Qwen-VL kind take an image as a sequence of patches. Here they get images of rows and columns like all others, which
become patches inside the forward pass, so that every method can change them.
"""

import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from glowmap.capture import hooked, method_patched
from glowmap.errors import InputError

_TAKE_PATCHES = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)
_TAKE_TILES = (  # with a tile axis after the batch
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)
_TAKE_ONE_SIZE = (  # although their forward has image_sizes, which may be left out for one image of one size
    "LlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration",
    "InternVLForConditionalGeneration",
)
# Parameters of forward that cannot be made from an image of rows and columns, and why.
_UNSUPPORTED = {
    "image_sizes": "cuts a picture into tiles of several sizes, which are no one grid",
    "image_grid_thw": "takes a picture as a row of patches in an order that is not known here",
    "image_grid_hws": "takes a picture as a row of patches in an order that is not known here",
    "image_position_ids": "takes a picture as a row of patches in an order that is not known here",
    "spatial_shapes": "takes a picture as a row of patches in an order that is not known here",
    "aspect_ratio_ids": "cuts a picture into tiles, which are no one grid",
    "qformer_input_ids": "reads the prompt by a second tokenizer, which is not known here",
}
_ONE_TILE = {"do_image_splitting": False, "crop_to_patches": False, "do_pan_and_scan": False}
_TOKEN_COUNTS: "WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]]" = WeakKeyDictionary()  # by image shape


def has_class(module: Any, names: Sequence[str]) -> bool:
    """Return whether one of a module's classes has one of these names."""
    return any(kind.__name__ in names for kind in type(module).__mro__)


def image_token(module: Any) -> int | None:
    """Return the token that stands for a part of the image in a text; None where the model has none."""
    config = module.config
    tokens = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((int(token) for token in tokens if token is not None), None)


def has_images_in_text(module: Any) -> bool:
    """Return whether a module is a language model with image tokens in its text."""
    return hasattr(module, "get_image_features") and hasattr(module, "generate") and image_token(module) is not None


def why_unsupported(module: Any) -> str:
    """Return why a model's input cannot be made from an image of rows and columns; empty where it can."""
    if has_class(module, _TAKE_PATCHES) or has_class(module, _TAKE_ONE_SIZE):
        return ""
    parameters = set(inspect.signature(module.forward).parameters)
    parameters |= set(inspect.signature(module.get_image_features).parameters)
    return next((reason for name, reason in _UNSUPPORTED.items() if name in parameters), "")


def image_inputs(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the keywords for images, batch x colour x rows x columns: unchanged, as patches, or as one tile each."""
    if has_class(module, _TAKE_PATCHES):
        patches, grid = in_patches(images, *_patch_sizes(module))
        return {"pixel_values": patches, "image_grid_thw": grid}
    return {"pixel_values": images[:, None] if has_class(module, _TAKE_TILES) else images}


def token_grids(module: Any, images: Tensor) -> Sequence[tuple[int, ...]]:
    """Return the grid of the tokens of an image that is taken as patches."""
    if not has_class(module, _TAKE_PATCHES):
        return ()
    patch, merge, _ = _patch_sizes(module)
    return [tuple(pixels // (patch * merge) for pixels in images.shape[2:])]


def token_count(module: Any, images: Tensor) -> int:
    """Return how many tokens the model makes of an image of this size; runs the image encoder once for each size."""
    grids = token_grids(module, images)
    if grids:
        return math.prod(grids[0])
    counts, shape = _TOKEN_COUNTS.setdefault(module, {}), tuple(images.shape[1:])
    if shape not in counts:
        with torch.no_grad():
            features = module.get_image_features(**image_inputs(module, images[:1]))
        features = getattr(features, "pooler_output", features)
        tokens: Sequence[Tensor] = features if isinstance(features, list | tuple) else [features]
        counts[shape] = sum(tensor.numel() // tensor.shape[-1] for tensor in tokens)
    return counts[shape]


def _patch_sizes(module: Any) -> tuple[int, int, int]:
    """Return the side of a patch in pixels, the side of a merged patch in patches, and the frames of a patch."""
    vision = module.config.vision_config
    return int(vision.patch_size), int(vision.spatial_merge_size), int(vision.temporal_patch_size)


def in_patches(images: Tensor, patch: int, merge: int, frames: int) -> tuple[Tensor, Tensor]:
    """Cut images into rows of patches; return these and the grid of each image (frames, rows, columns), counted in patches.

    The merge x merge patches that are merged later follow each other, and each is repeated for all ``frames``, as in
    transformers' ``Qwen2VLImageProcessor.patchify``. Differentiable. Raises InputError for sides that are not a multiple of
    patch x merge.
    """
    side = patch * merge
    if images.ndim != 4 or any(pixels % side for pixels in images.shape[2:]):
        raise InputError(
            f"images of shape {tuple(images.shape)} are not batch x colour x rows x columns with rows and columns that are "
            f"multiples of {side}; give pictures, or resize the images to such a size"
        )
    batch, colours, rows, columns = images.shape
    down, across = rows // side, columns // side
    blocks = images.reshape(batch, colours, down, merge, patch, across, merge, patch)
    ordered = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    grid = torch.tensor([[1, down * merge, across * merge]] * batch, device=images.device)
    return ordered.reshape(batch * down * across * merge**2, -1), grid


def out_of_patches(patches: Tensor, grid: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Return the image, colour x rows x columns, of the patches of one image: the inverse of :func:`in_patches`."""
    down, across = int(grid[1]) // merge, int(grid[2]) // merge
    blocks = patches.reshape(down, across, merge, merge, -1, frames, patch, patch)[:, :, :, :, :, 0]
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, down * merge * patch, across * merge * patch)


def processed_picture(processor: Any, picture: Image.Image) -> Tensor:
    """Run an image processor on one picture without tiling; return colour x rows x columns."""
    parameters = inspect.signature(processor.preprocess).parameters
    accepted = {*parameters, *getattr(getattr(processor, "valid_kwargs", None), "__annotations__", {})}
    one_tile = one_tile_options(accepted)
    inputs = processor(images=picture, return_tensors="pt", **one_tile)
    values: Tensor = inputs["pixel_values"][0]
    if "image_grid_thw" in inputs and hasattr(processor, "merge_size"):
        sizes = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
        return out_of_patches(inputs["pixel_values"], inputs["image_grid_thw"][0], *sizes)
    return values[0] if values.ndim == 4 and len(values) == 1 and "do_image_splitting" in one_tile else values


def one_tile_options(accepted: Any) -> dict[str, bool]:
    """Return those of a processor's options that keep a picture in one tile."""
    return {name: value for name, value in _ONE_TILE.items() if name in accepted}


@contextmanager
def as_rows_and_columns(module: Any) -> Iterator[None]:
    """Let a model take images of rows and columns, and return image tokens as image x token x channel, row by row."""

    def convert(_module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        images = keywords.get("pixel_values")
        if not isinstance(images, Tensor) or images.ndim != 4:
            return None
        return arguments, {**keywords, **image_inputs(module, images)}

    takes_other_images = has_class(module, (*_TAKE_PATCHES, *_TAKE_TILES))
    converted = hooked([module], before=convert) if takes_other_images else nullcontext()
    with converted, _tokens_by_image(module.model.visual) if has_class(module, _TAKE_PATCHES) else nullcontext():
        yield


@contextmanager
def _tokens_by_image(encoder: Any) -> Iterator[None]:
    """Let an encoder that runs the patches of all images in one row return its merged tokens as image x token x channel.

    Where it works in windows, the tokens are sorted by rows before they are merged, and sorted back afterwards. Each token is
    merged separately, so only their order changes.
    """
    merger = encoder.merger
    images, order = 1, torch.empty(0)

    def begin(_encoder: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        nonlocal images, order
        grid = keywords["grid_thw"] if "grid_thw" in keywords else arguments[1]
        images, order = len(grid), _window_order(encoder, grid)

    def sort(_part: Any, arguments: tuple[Tensor, ...], keywords: dict[str, Any]) -> Any:
        return (_split(arguments[0][order.argsort()], images), *arguments[1:]), keywords

    def sort_back(_part: Any, _arguments: Any, _keywords: Any, output: Tensor) -> Tensor:
        return output.flatten(0, 1)[order]

    def split(forward: Any, *arguments: Any, **keywords: Any) -> Tensor:
        return _split(forward(*arguments, **keywords), images)

    def flatten(_encoder: Any, _arguments: Any, _keywords: Any, output: Any) -> None:
        output["pooler_output"] = output["pooler_output"].flatten(0, 1)
        if output.get("deepstack_features") is not None:
            output["deepstack_features"] = [features.flatten(0, 1) for features in output["deepstack_features"]]

    with ExitStack() as stack:
        stack.enter_context(hooked([encoder], before=begin))
        if hasattr(merger, "mlp"):
            stack.enter_context(hooked([merger.mlp], before=sort))
            stack.enter_context(hooked([merger], after=sort_back))
        else:
            for part in (merger, *getattr(encoder, "deepstack_merger_list", ())):
                # patched, because a hook would change the output only after other hooks have seen it
                stack.enter_context(method_patched(part, "forward", split))
            stack.enter_context(hooked([encoder], after=flatten))
        yield


def _split(tokens: Tensor, images: int) -> Tensor:
    return tokens.reshape(images, -1, tokens.shape[-1])


def _window_order(encoder: Any, grid: Tensor) -> Tensor:
    """Return the order in which an encoder holds its merged patches: by windows, where it has some."""
    count = int(grid.prod(-1).sum()) // int(encoder.spatial_merge_size) ** 2
    if not hasattr(encoder, "window_size"):
        return torch.arange(count, device=grid.device)
    indices, _ = sys.modules[type(encoder).__module__].get_vision_window_index(
        grid,
        spatial_merge_size=encoder.spatial_merge_size,
        window_size=encoder.window_size,
        patch_size=encoder.patch_size,
    )
    order: Tensor = indices.to(grid.device)
    return order
