"""Layers by name or module, the layers worth naming, and their outputs laid out as batch x channel x rows x columns."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.errors import LayerError
from glowmap.shapes import Maps, crossed
from glowmap.shelf import near_names

LayerName = str | nn.Module

# How far the strides of two axes may lie apart before an axis is taken for something other than space.
_SAME_STRIDE = 1.6
_TOKENS_BEFORE = 8  # class, distillation and register tokens that may stand before those of the patches


def find_layers(model: nn.Module, wanted: Any) -> dict[str, nn.Module]:
    """Look up layers by dotted name or by identity; the answer keeps the order and drops repetitions.

    Raises LayerError for a name or module that the model does not have, with the near names.
    """
    if wanted is None or (isinstance(wanted, list | tuple) and not wanted):
        stages = [name for name, child in model.named_children() if any(True for _ in child.children())]
        raise LayerError(
            f"no layer given for {type(model).__name__}; pass layer=..., for example one inside "
            f"{', '.join(stages[:6]) or 'the model'} (`glowmap layers` lists them with their grids)"
        )
    several = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    return dict(_find(model, layer) for layer in several)


def _find(model: nn.Module, layer: Any) -> tuple[str, nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer and name:
                return name, module
        if layer is model:
            raise LayerError(f"the layer given is the whole {type(model).__name__}; name a module inside it")
        raise LayerError(
            f"the given {type(layer).__name__} is no part of this {type(model).__name__}; "
            "take the layer from the model that is explained"
        )
    if not isinstance(layer, str):
        raise LayerError(f"a layer is a dotted name or a module, not {layer!r} ({type(layer).__name__})")
    if layer not in modules or not layer:
        raise LayerError(f"no layer {layer!r} in {type(model).__name__}; {near_names(layer, filter(None, modules))}")
    return layer, modules[layer]


def lay_out(tensor: Tensor, name: str, module: nn.Module, images: Tensor) -> Maps:
    """Read a layer's output as batch x channel x space, where space has the axes of the images.

    Channels-last output (batch x rows x columns x channel) is recognised by its strides, or by what the layer is made of where
    both readings fit, and moved. Tokens (batch x tokens x channel) are laid out where square patches of the picture are as many,
    but for a few tokens before them, which are left out. Raises LayerError where there is nothing to lay out: another batch
    axis, tokens that are no grid, one cell.
    """
    shape, pixels = tensor.shape, images.shape[2:]
    spelled = crossed(shape)
    if shape[0] != images.shape[0]:
        raise LayerError(
            f"the output of layer {name!r} ({spelled}) has {shape[0]} rows for {images.shape[0]} images; "
            "name a layer that keeps one row an image"
        )
    grid = _token_grid(shape[1], pixels) if len(shape) == 3 and len(pixels) > 1 else None
    if len(shape) != images.ndim and grid is None:
        raise LayerError(
            f"the output of layer {name!r} ({spelled}) does not have the {len(pixels)} spatial axes of the input "
            f"({crossed(images.shape)}), nor as many tokens as it has square patches; name a layer whose output is "
            "batch x channel x rows x columns"
        )
    if grid is not None:
        return tensor[:, -math.prod(grid) :].transpose(1, 2).reshape(shape[0], shape[2], *grid)
    maps = tensor.movedim(-1, 1) if _channels_last(shape, pixels, module) else tensor
    if maps[0, 0].numel() < 2:
        raise LayerError(
            f"the output of layer {name!r} ({spelled}) has no spatial axes left, only one cell; "
            "name a layer before the pooling"
        )
    return maps


def laid_back(maps: Maps, one: Tensor, module: nn.Module, images: Tensor) -> Tensor:
    """Lay maps out as the layer's own output is, given that output for their image: the way back from :func:`lay_out`."""
    if one.ndim == 3 and images.ndim > 3:
        tokens = maps.flatten(2).transpose(1, 2)
        before = one[:, : one.shape[1] - tokens.shape[1]].expand(len(maps), -1, -1)
        return torch.cat([before, tokens.to(one.dtype)], 1)
    own = maps.movedim(1, -1) if _channels_last(one.shape, images.shape[2:], module) else maps
    return own.to(one.dtype)


def _token_grid(tokens: int, pixels: Sequence[int]) -> tuple[int, ...] | None:
    """Find the square patches that fill the picture and are so many, with as few tokens before them as possible."""
    sides = [side for side in range(1, min(pixels) + 1) if not any(pixel % side for pixel in pixels)]
    grids = {math.prod(grid): grid for side in sides if math.prod(grid := tuple(p // side for p in pixels)) > 1}
    return next((grids[tokens - before] for before in range(_TOKENS_BEFORE + 1) if tokens - before in grids), None)


def _channels_last(shape: Sequence[int], pixels: Sequence[int], module: nn.Module) -> bool:
    first, last = _unevenness(shape[2:], pixels), _unevenness(shape[1:-1], pixels)
    if first > _SAME_STRIDE or last > _SAME_STRIDE:
        return last <= _SAME_STRIDE  # one reading fits; where none does, channels come first as nearly everywhere
    works_on_first, works_on_last = _works_on(module)
    return works_on_last if works_on_last != works_on_first else last < first


def _works_on(module: nn.Module) -> tuple[bool, bool]:
    """Tell whether what a module is made of works on channels that come first, and whether on channels that come last."""
    # Subclasses are left out: a LayerNorm2d keeps its channels first.
    kinds = {type(part) for part in module.modules()}
    on_first = any(word in kind.__name__ for kind in kinds for word in ("Conv", "Pool", "BatchNorm", "GroupNorm"))
    return on_first, bool(kinds & {nn.LayerNorm, nn.Linear})


def witness(model: nn.Module, name: str) -> nn.Module:
    """Find the module that tells where a layer's channels are: itself, or the nearest around it that is made of one kind.

    An activation says nothing of its input; the linear layers or convolutions beside it do. The model as a whole does not: a
    linear head says nothing of the layers before it.
    """
    parts = name.split(".")
    around = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), 0, -1))
    return next((one for one in around if len({*_works_on(one)}) == 2), model.get_submodule(name))


def _unevenness(grid: Sequence[int], pixels: Sequence[int]) -> float:
    """Compare the axes' strides: 1 where all shrank by the same factor, as a picture's rows and columns do in a network."""
    strides = [pixel / cell for pixel, cell in zip(pixels, grid, strict=True)]
    return max(strides) / min(strides)


@dataclass(frozen=True)
class Surveyed:
    """A layer worth naming: what it is, its channels and its grid."""

    name: str
    kind: str
    channels: int
    grid: tuple[int, ...]


@contextmanager
def surveyed(model: nn.Module, images: Tensor, *, depth: int) -> Iterator[list[Surveyed]]:
    """List, while the model is run inside, the modules at most ``depth`` names deep whose output is a grid of several cells."""
    rows: list[Surveyed] = []
    with ExitStack() as hooked:
        for name, module in model.named_modules():
            if name and name.count(".") < depth:
                note = _noting(rows, name, witness(model, name), images)
                hooked.callback(module.register_forward_hook(note).remove)
        yield rows


def _noting(rows: list[Surveyed], name: str, judge: nn.Module, images: Tensor) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, _inputs: Any, output: Any) -> None:
        with suppress(LayerError):  # what has no grid is what the list leaves out
            if isinstance(output, Tensor):
                maps = lay_out(output, name, judge, images)
                rows.append(Surveyed(name, type(module).__name__, maps.shape[1], tuple(maps.shape[2:])))

    return note
