"""Language models that take a picture among their words: how the picture, the prompt and the answer are put to them.

The models of the Qwen-VL kind take a picture as a row of patches. Here they are given pictures with rows and columns like all
others, which become those patches on the way in, so that every method works on them.
"""

import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from glowmap.capture import hooked, method_patched
from glowmap.errors import InputError, Remedy, TargetError, summarise

_IN_PATCHES = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)
_OF_SEVERAL = (
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)  # pictures, each with an axis of tiles
_ONE_TILE = {"do_image_splitting": False, "crop_to_patches": False, "do_pan_and_scan": False}
# What a forward takes that no picture of rows and columns alone can give, and why.
_MORE = {
    "image_sizes": "cuts a picture into tiles of several sizes, which are no one grid",
    "image_grid_thw": "takes a picture as a row of patches in an order that is not known here",
    "image_grid_hws": "takes a picture as a row of patches in an order that is not known here",
    "image_position_ids": "takes a picture as a row of patches in an order that is not known here",
    "spatial_shapes": "takes a picture as a row of patches in an order that is not known here",
    "aspect_ratio_ids": "cuts a picture into tiles, which are no one grid",
    "qformer_input_ids": "reads the prompt by a second tokenizer, which is not known here",
}
# how many tokens a picture of a size becomes
_COUNTS: "WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]]" = WeakKeyDictionary()
# whose forward knows image_sizes, and takes one picture of one size without them
_BESIDE_ONE_GRID = (
    "LlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration",
    "InternVLForConditionalGeneration",
)


@dataclass(frozen=True)
class PromptState:
    """What stands before the first word of an answer: tokens by keyword, one row each, as ``before`` was spelled.

    ``gap`` is what stands between ``before`` and the first word where they are spelled together. ``fills`` says what goes on in
    keywords that have an entry for each token, where it is not zero.
    """

    given: Mapping[str, Tensor]
    before: str = ""
    gap: str = ""
    fills: Mapping[str, int] | None = None

    def grown(self, name: str, tokens: Tensor) -> dict[str, Tensor]:
        """Let words follow under a keyword, in a row for each image or one for all; what has an entry a token grows along."""
        fills = self.fills or {}
        start = self.given[name]
        grown = {name: torch.cat([start.expand(len(tokens), -1), tokens], 1)}
        for other in fills:
            more = torch.full_like(tokens, fills[other])
            grown[other] = torch.cat([self.given[other].expand(len(tokens), -1), more], 1)
        return {**self.given, **grown}


def ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """Spell a text in tokens; TargetError where the tokenizer fails."""
    try:
        return [int(token) for token in tokenizer(text, add_special_tokens=special)["input_ids"]]
    except Exception as error:  # a stranger's code
        raise TargetError(
            f"the tokenizer raised {summarise(error)} on {text!r}; check that it is this model's own"
        ) from error


def reads_pictures(module: Any) -> bool:
    """Tell whether a module is a language model with pictures among its words."""
    return hasattr(module, "get_image_features") and hasattr(module, "generate") and image_token(module) is not None


def refusal(module: Any) -> str:
    """Say why a model cannot be asked here; empty for one that can."""
    if _is(module, _IN_PATCHES) or _is(module, _BESIDE_ONE_GRID):
        return ""
    takes = set(inspect.signature(module.forward).parameters)
    takes |= set(inspect.signature(module.get_image_features).parameters)
    return next((why for name, why in _MORE.items() if name in takes), "")


def _is(module: Any, names: Sequence[str]) -> bool:
    return any(kind.__name__ in names for kind in type(module).__mro__)


def image_token(module: Any) -> int | None:
    """Tell the token that stands for a piece of the picture among the words, where a model has one."""
    config = module.config
    found = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((int(one) for one in found if one is not None), None)


def pictures(module: Any, images: Tensor) -> dict[str, Tensor]:
    """Make images what the model takes: batch x colour x rows x columns stay, or become patches or sets of one tile."""
    if _is(module, _IN_PATCHES):
        patches, grid = in_patches(images, *_patch(module))
        return {"pixel_values": patches, "image_grid_thw": grid}
    return {"pixel_values": images[:, None] if _is(module, _OF_SEVERAL) else images}


def grids(module: Any, images: Tensor) -> Sequence[tuple[int, ...]]:
    """Tell the grid of the tokens that a picture of patches becomes."""
    if not _is(module, _IN_PATCHES):
        return ()
    patch, merge, _ = _patch(module)
    return [tuple(pixels // (patch * merge) for pixels in images.shape[2:])]


def _patch(module: Any) -> tuple[int, int, int]:
    vision = module.config.vision_config
    return int(vision.patch_size), int(vision.spatial_merge_size), int(vision.temporal_patch_size)


def in_patches(images: Tensor, patch: int, merge: int, frames: int) -> tuple[Tensor, Tensor]:
    """Cut images into rows of patches, and tell each image's grid of them: frames, rows, columns.

    Patches that are merged later follow each other, merge x merge of them, and each is there for every one of ``frames``: as
    transformers' ``Qwen2VLImageProcessor.patchify`` has it. Differentiable. InputError for sides that are no whole number of
    merged patches.
    """
    side = patch * merge
    if images.ndim != 4 or any(pixels % side for pixels in images.shape[2:]):
        raise InputError(
            f"images of shape {tuple(images.shape)} are not batch x colour x rows x columns with rows and columns that are "
            f"multiples of {side}; give pictures, or resize the images to such a size"
        )
    batch, colours, rows, columns = images.shape
    down, across = rows // side, columns // side
    cut = images.reshape(batch, colours, down, merge, patch, across, merge, patch)
    ordered = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    grid = torch.tensor([[1, down * merge, across * merge]] * batch, device=images.device)
    return ordered.reshape(batch * down * across * merge**2, -1), grid


def out_of_patches(patches: Tensor, grid: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Lay the patches of one picture out as colour x rows x columns: the way back from :func:`in_patches`."""
    down, across = int(grid[1]) // merge, int(grid[2]) // merge
    laid = patches.reshape(down, across, merge, merge, -1, frames, patch, patch)[:, :, :, :, :, 0]
    return laid.permute(4, 0, 2, 5, 1, 3, 6).reshape(-1, down * merge * patch, across * merge * patch)


def one_picture(processor: Any, picture: Image.Image) -> Tensor:
    """Let an image processor make one picture a tensor of colour x rows x columns, whole where it would be cut into tiles."""
    own = inspect.signature(processor.preprocess).parameters
    known = {*own, *getattr(getattr(processor, "valid_kwargs", None), "__annotations__", {})}
    whole = {name: value for name, value in _ONE_TILE.items() if name in known}
    given = processor(images=picture, return_tensors="pt", **whole)
    values: Tensor = given["pixel_values"][0]
    if "image_grid_thw" in given and hasattr(processor, "merge_size"):
        sizes = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
        return out_of_patches(given["pixel_values"], given["image_grid_thw"][0], *sizes)
    return values[0] if values.ndim == 4 and len(values) == 1 and "do_image_splitting" in whole else values


@contextmanager
def as_rows_and_columns(module: Any) -> Iterator[None]:
    """Let a model take images of rows and columns, and put the tokens it makes of them out image by image and row by row."""

    def take(_module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        images = keywords.get("pixel_values")
        if not isinstance(images, Tensor) or images.ndim != 4:
            return None
        return arguments, {**keywords, **pictures(module, images)}

    takes = hooked([module], before=take) if _is(module, (*_IN_PATCHES, *_OF_SEVERAL)) else nullcontext()
    with takes, _by_image(module.model.visual) if _is(module, _IN_PATCHES) else nullcontext():
        yield


@contextmanager
def _by_image(tower: Any) -> Iterator[None]:
    """Let a tower that runs all images' patches in one row put out its merged tokens as image x token x channel.

    Where it works in windows, the tokens are put in the order of rows before they are made, and back behind. Each is made by
    itself, so that nothing changes but the order.
    """
    merger = tower.merger
    images, order = 1, torch.empty(0)

    def begin(_tower: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        nonlocal images, order
        grid = keywords["grid_thw"] if "grid_thw" in keywords else arguments[1]
        images, order = len(grid), _windows(tower, grid)

    def lay(_part: Any, arguments: tuple[Tensor, ...], keywords: dict[str, Any]) -> Any:
        return (_split(arguments[0][order.argsort()], images), *arguments[1:]), keywords

    def back(_part: Any, _arguments: Any, _keywords: Any, output: Tensor) -> Tensor:
        return output.flatten(0, 1)[order]

    def split(forward: Any, *arguments: Any, **keywords: Any) -> Tensor:
        return _split(forward(*arguments, **keywords), images)

    def flatten(_tower: Any, _arguments: Any, _keywords: Any, output: Any) -> None:
        output["pooler_output"] = output["pooler_output"].flatten(0, 1)
        if output.get("deepstack_features") is not None:
            output["deepstack_features"] = [features.flatten(0, 1) for features in output["deepstack_features"]]

    with ExitStack() as stack:
        stack.enter_context(hooked([tower], before=begin))
        if hasattr(merger, "mlp"):
            stack.enter_context(hooked([merger.mlp], before=lay))
            stack.enter_context(hooked([merger], after=back))
        else:
            for part in (merger, *getattr(tower, "deepstack_merger_list", ())):
                # before any hook sees the output, which a hook could not do
                stack.enter_context(method_patched(part, "forward", split))
            stack.enter_context(hooked([tower], after=flatten))
        yield


def _split(tokens: Tensor, images: int) -> Tensor:
    return tokens.reshape(images, -1, tokens.shape[-1])


def _windows(tower: Any, grid: Tensor) -> Tensor:
    """Tell in which order a tower has its merged patches: that of its windows, where it has some."""
    merged = int(grid.prod(-1).sum()) // int(tower.spatial_merge_size) ** 2
    if not hasattr(tower, "window_size"):
        return torch.arange(merged, device=grid.device)
    indices, _ = sys.modules[type(tower).__module__].get_vision_window_index(
        grid, spatial_merge_size=tower.spatial_merge_size, window_size=tower.window_size, patch_size=tower.patch_size
    )
    found: Tensor = indices.to(grid.device)
    return found


def read_prompt(tokenizer: Any, processor: Any, module: Any, images: Tensor, prompt: str | None) -> PromptState:
    """Write a prompt with the picture before it, as the model's chat template or its processor has it."""
    text, gap = _written(tokenizer, processor, prompt)
    picture = image_token(module) or 0  # none is the picture's where there is no such token, which is refused below
    tokens = _read(tokenizer, processor, text, images)
    runs = [at for at, token in enumerate(tokens) if token == picture and (at == 0 or tokens[at - 1] != picture)]
    if len(runs) != 1:
        raise TargetError(
            f"the prompt of {type(module).__name__} has {len(runs)} places for pictures, where one is given",
            remedy=Remedy(
                "write a prompt "
                "without placeholders, and give the model's own processor: glowmap.load(module, processor=...)"
            ),
        )
    start = runs[0]
    end = next((at for at in range(start, len(tokens)) if tokens[at] != picture), len(tokens))
    spelled = torch.tensor([[*tokens[:start], *[picture] * _count(module, images), *tokens[end:]]])
    given, fills = _kinds_of_token(module, spelled, spelled.eq(picture))
    return PromptState({"input_ids": spelled, **given}, text, gap, fills)


def _kinds_of_token(module: Any, tokens: Tensor, of_picture: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tell the tokens of the picture from those of words, as some models want it; and what those of an answer are."""
    takes = inspect.signature(module.forward).parameters
    given: dict[str, Tensor] = {}
    fills: dict[str, int] = {}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in takes:
            # PaliGemma reads the prompt in both directions, which is 0, and its answer in one, which is 1
            prefixed = name == "token_type_ids" and _is(module, ("PaliGemmaForConditionalGeneration",))
            given[name], fills[name] = (torch.zeros_like(tokens), 1) if prefixed else (of_picture.long(), 0)
    return given, fills


def _written(tokenizer: Any, processor: Any, prompt: str | None) -> tuple[str, str]:
    """Write the prompt as a text with a placeholder for the picture, and tell what stands between it and the answer."""
    asked: list[dict[str, Any]] = [{"type": "image"}, *([{"type": "text", "text": prompt}] if prompt else [])]
    turn = {"role": "user", "content": asked}
    speaker = next((one for one in (processor, tokenizer) if getattr(one, "chat_template", None)), None)
    if speaker is None:
        placeholder = _placeholder(tokenizer, processor)
        text = prompt or ""
        return text if placeholder in text else placeholder + text, ""
    answer = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    try:
        before = str(speaker.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
        with_answer = str(speaker.apply_chat_template([turn, answer], tokenize=False, continue_final_message=True))
    except Exception as error:  # a template may refuse anything
        raise TargetError(
            f"the chat template raised {summarise(error)}; check that the processor is this model's own"
        ) from error
    gap = with_answer[len(before) : -1] if with_answer.startswith(before) and with_answer.endswith("x") else ""
    return before, gap


def _placeholder(tokenizer: Any, processor: Any) -> str:
    found = (getattr(one, "image_token", None) for one in (processor, tokenizer))
    return str(next((one for one in found if one is not None), "<image>"))


def _read(tokenizer: Any, processor: Any, text: str, images: Tensor) -> list[int]:
    """Spell the prompt as the processor does, which may write more around a picture; a tokenizer alone as it is."""
    start = getattr(tokenizer, "bos_token", None)
    special = not (start and text.startswith(start))  # a template may have written it
    makes = getattr(processor, "image_processor", None)
    if makes is None:
        return ids(tokenizer, text, special=special)
    stand_in = Image.new("RGB", (images.shape[-1], images.shape[-2]), (127, 127, 127))
    known = {
        **getattr(processor, "images_kwargs", {}),
        **getattr(getattr(makes, "valid_kwargs", None), "__annotations__", {}),
    }
    whole = {name: value for name, value in _ONE_TILE.items() if name in known}
    try:
        read = processor(images=stand_in, text=text, add_special_tokens=special, **whole)
    except Exception as error:  # a stranger's code
        raise TargetError(
            f"the processor raised {summarise(error)} on the prompt {text!r}; check that it is this model's own"
        ) from error
    tokens = read["input_ids"]
    return [int(token) for token in (tokens[0] if len(tokens) == 1 and not isinstance(tokens[0], int) else tokens)]


def _count(module: Any, images: Tensor) -> int:
    """Count the tokens that a picture of this size becomes, as the model itself makes them."""
    known = grids(module, images)
    if known:
        return math.prod(known[0])
    counts, size = _COUNTS.setdefault(module, {}), tuple(images.shape[1:])
    if size not in counts:
        with torch.no_grad():
            made = module.get_image_features(**pictures(module, images[:1]))
        made = getattr(made, "pooler_output", made)
        tokens: Sequence[Tensor] = made if isinstance(made, list | tuple) else [made]
        counts[size] = sum(one.numel() // one.shape[-1] for one in tokens)
    return counts[size]
