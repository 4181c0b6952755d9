"""The numbers of an explanation: maps brought to a size and a range, and how much of the heat a mask holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from glowmap.errors import InputError
from glowmap.inputs import Drawable, crop_masks, read_masks
from glowmap.methods import is_flat, resize
from glowmap.metrics import energy_share
from glowmap.shapes import Heatmaps, RawMaps, crossed

CONCEPTS = "deep_feature_factorisation"  # the method of maps that explain no target
# Bilinear weights of one cell sum to 1 only up to rounding. A range below this share of the values is rounding noise.
_SKEWED = 1.1  # the largest ratio of a mask's strides along rows and columns; beyond it the mask shows another picture


@dataclass(frozen=True)
class Shares:
    """How much of one image's heat lies inside a mask."""

    value: float  # share of the heat inside the mask, from 0 to 1; 0 for a blank map
    chance: float  # share of the area that the mask covers: the value of a map that is the same everywhere

    @property
    def lift(self) -> float:
        """``value / chance``: above 1, the heat prefers the mask. NaN for a mask that covers nothing."""
        return self.value / self.chance if self.chance else float("nan")


def resized(maps: RawMaps, size: tuple[int, ...]) -> Heatmaps:
    """Resize maps linearly along each axis, or by averaging areas where they are finer than ``size`` along any axis."""
    if any(cells > pixels for cells, pixels in zip(maps.shape[1:], size, strict=True)):
        return F.interpolate(maps[:, None], size, mode="area")[:, 0]  # linear interpolation would skip cells
    return resize(maps[:, None], size)[:, 0]


def on_input(maps: RawMaps, input_size: tuple[int, ...], canvas: tuple[int, ...] = ()) -> Heatmaps:
    """Resize maps to the input. With a ``canvas`` (the input padded at its far ends), resize to it and cut the padding off."""
    return resized(maps, canvas or input_size)[(slice(None), *(slice(pixels) for pixels in input_size))]


def min_max(maps: Heatmaps) -> Heatmaps:
    """Scale each map of a batch to [0, 1]. A flat map becomes zero, whatever its value."""
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    blank = is_flat(maps)[:, None]
    scaled = ((flat - low) / (high - low).masked_fill(blank, 1.0)).masked_fill(blank, 0.0)
    return scaled.reshape(maps.shape)


def shares_inside(
    raw: RawMaps, mask: Any, input_size: tuple[int, ...], canvas: tuple[int, ...], pictures: Sequence[Drawable]
) -> list[Shares]:
    """Compute the share of each image's heat inside a mask, or inside its own mask where there is one for each image.

    ``mask``, ``canvas`` and ``pictures`` are those of :meth:`glowmap.Explanation.share`. Raises InputError for a mask of
    another number of axes, another number of masks than images, or a mask of another shape than the picture.
    """
    axes, count = raw.ndim - 1, len(raw)
    masks, is_per_image = read_masks(mask, axes=axes)
    wrong = [crossed(mask.shape) for mask in masks if mask.ndim != axes or not mask.numel()]
    if wrong or (is_per_image and len(masks) != count):
        fact = f"a mask of {wrong[0]} does" if wrong else f"{len(masks)} mask{'s do' if len(masks) != 1 else ' does'}"
        raise InputError(
            f"{fact} not fit {count} image{'s' * (count > 1)} of {crossed(input_size)}; "
            "give one of the picture's size, or one for each image"
        )
    masks = masks if is_per_image else masks * count
    visible = crop_masks(masks, pictures, alike=not is_per_image)
    shares = []
    for index, (mask, part) in enumerate(zip(masks, visible, strict=True)):
        if part is None:
            _check_shape(mask, input_size)
        inside = (mask if part is None else part).to(raw.device)[None]
        maps = raw[index : index + 1].relu()
        if canvas not in ((), input_size):
            maps = on_input(maps, input_size, canvas)  # a mask doesn't cover the padding
        heat = resized(maps, tuple(inside.shape[1:]))
        shares.append(Shares(float(energy_share(heat, inside)), float(inside.double().mean())))
    return shares


def _check_shape(mask: Tensor, input_size: tuple[int, ...]) -> None:
    # time, depth and rows may each be sampled at their own rate, but not the rows and columns of one picture
    strides = [pixels / cells for pixels, cells in zip(input_size, mask.shape, strict=True)][-2:]
    if max(strides) > _SKEWED * min(strides):
        raise InputError(
            f"a mask of {crossed(mask.shape)} has another shape than the input of {crossed(input_size)}; give rows x "
            "columns of the picture, or of what the model saw at any resolution"
        )
