"""Masks: what methods multiply an image or activations by before they run the model again.

The same code serves signals, pictures and volumes. A mask that is a product of its axes is kept as a small matrix for each
axis.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap.errors import MethodError


def check_least(least: int, **parameters: int) -> None:
    """Raise MethodError for a parameter below ``least``."""
    for name, value in parameters.items():
        if value < least:
            raise MethodError(f"{name} is {value}; give at least {least}")


def resize(maps: Tensor, size: Sequence[int], *, corners: bool = False) -> Tensor:
    """Interpolate maps, batch x channel x grid, (bi-, tri-) linearly to another size.

    With ``corners`` the centres of the outer cells lie on the edge of the result.
    """
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps, tuple(size), mode=mode, align_corners=corners)


def rescale(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Map ``low`` to 0 and ``high`` to 1 linearly; all values to 0 where the two are equal."""
    span = high - low
    return torch.where(span == 0, 0, (values - low) / span.masked_fill(span == 0, 1))


def min_max(maps: Tensor) -> Tensor:
    """Rescale each map of batch x channel x grid to [0, 1]; a flat map becomes zero."""
    grid = tuple(range(2, maps.ndim))
    return rescale(maps, maps.amin(grid, keepdim=True), maps.amax(grid, keepdim=True))


def subtract_minimum(maps: Tensor) -> Tensor:
    """Subtract from each map of scores its least value, so that the ReLU of the heatmap cuts nothing off."""
    return maps - maps.flatten(1).amin(1).reshape(-1, *[1] * (maps.ndim - 1))


def above_rounding(scores: Tensor, changed: Tensor) -> Tensor:
    """Subtract ``changed`` from ``scores``, and give 0 where the difference is within their rounding error."""
    drops = scores - changed
    return torch.where(drops.abs() > 16 * torch.finfo(drops.dtype).eps * scores.abs(), drops, 0)


def apply_masks(images: Tensor, masks: Tensor) -> Tensor:
    """Multiply an image by masks. Returns one copy for each mask, of the image's dtype."""
    return (images * masks).to(images.dtype)


def outer_product(axes: Sequence[Tensor], part: slice) -> Tensor:
    """Compute a slice of all outer products of one row from each axis: count x 1 x grid.

    Each axis is a matrix, choices x cells. The rows of the last axis vary fastest.
    """
    rows = torch.unravel_index(torch.arange(part.start, part.stop), tuple(len(axis) for axis in axes))
    masks = axes[0].new_ones([part.stop - part.start] + [1] * len(axes))
    for number, (axis, row) in enumerate(zip(axes, rows, strict=True), start=1):
        shape = [len(row)] + [1] * len(axes)
        shape[number] = axis.shape[1]
        masks = masks * axis[row.to(axis.device)].reshape(shape)
    return masks[:, None]


def apply_separable(values: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Multiply each of the last axes of ``values`` by a matrix, old size x new size."""
    first = values.ndim - len(axes)
    for axis in axes:  # a multiplied axis goes to the end, so that after all of them the order is as before
        values = torch.tensordot(values, axis, dims=([first], [0]))
    return values
