"""Masks: what methods multiply an image or a layer's maps by before they ask the model again.

One code for signals, pictures and volumes: what is a product of its axes is kept as one small matrix an axis.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap.errors import MethodError


def at_least(least: int, **knob: int) -> None:
    """Refuse a knob that is too small to mean anything."""
    for name, value in knob.items():
        if value < least:
            raise MethodError(f"{name} is {value}; give at least {least}")


def enlarged(maps: Tensor, size: Sequence[int], *, corners: bool = False) -> Tensor:
    """Bring maps (batch x channel x space) to another size; with ``corners`` the outer cells' centres lie on the edge."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps, tuple(size), mode=mode, align_corners=corners)


def between(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Say where values lie between two others, 0 at the one and 1 at the other; 0 where the two are one."""
    span = high - low
    return torch.where(span == 0, 0, (maps - low) / span.masked_fill(span == 0, 1))


def above_least(maps: Tensor) -> Tensor:
    """Count a map of scores from its least value, so that the heatmap's ReLU cuts nothing off."""
    return maps - maps.flatten(1).amin(1).reshape(-1, *[1] * (maps.ndim - 1))


def above_rounding(scores: Tensor, changed: Tensor) -> Tensor:
    """Subtract scores, and give 0 where the difference is no more than their rounding, which would pass for a map."""
    drops = scores - changed
    return torch.where(drops.abs() > 16 * torch.finfo(drops.dtype).eps * scores.abs(), drops, 0)


def stretched(maps: Tensor) -> Tensor:
    """Stretch each map of batch x channel x space to [0, 1]; one that is flat has nothing to show and becomes zero."""
    space = tuple(range(2, maps.ndim))
    return between(maps, maps.amin(space, keepdim=True), maps.amax(space, keepdim=True))


def masked(images: Tensor, masks: Tensor) -> Tensor:
    """Multiply an image by masks: a copy a mask, of the image's own type."""
    return (images * masks).to(images.dtype)


def products(axes: Sequence[Tensor], part: slice) -> Tensor:
    """Multiply out a slice of all combinations of one row an axis: count x 1 x space, the last axis's rows running fastest.

    Each axis is a matrix, choices x cells.
    """
    places = torch.unravel_index(torch.arange(part.start, part.stop), tuple(len(axis) for axis in axes))
    masks = axes[0].new_ones([part.stop - part.start] + [1] * len(axes))
    for number, (axis, place) in enumerate(zip(axes, places, strict=True), start=1):
        shape = [len(place)] + [1] * len(axes)
        shape[number] = axis.shape[1]
        masks = masks * axis[place.to(axis.device)].reshape(shape)
    return masks[:, None]


def along(values: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Multiply the last axes of ``values`` by one matrix each, from x to."""
    first = values.ndim - len(axes)
    for axis in axes:  # what was multiplied goes to the end, so that after a full turn all lie as before
        values = torch.tensordot(values, axis, dims=([first], [0]))
    return values
