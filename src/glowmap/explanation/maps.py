"""The numbers of an answer: raw maps, heatmaps and scores, and what was asked of which layer."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from glowmap.errors import InputError
from glowmap.inputs import Shown, parts_seen, read_masks
from glowmap.metrics import energy_share
from glowmap.outputs import Prediction
from glowmap.shapes import Flags, Heatmaps, RawMaps, Scores, crossed
from glowmap.targets import Annotation

# Bilinear weights of one cell sum to 1 only up to rounding; a span below this share of the values is no heat but noise.
CONCEPTS = "deep_feature_factorisation"  # the method of maps that answer no question
_FLAT = 1e-6
_SKEWED = 1.1  # how far a mask's rows and columns may be stretched apart before it is of something else
_RESIZE = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, eq=False)
class Explained:
    """What an :class:`Explanation` knows of its images, apart from how it is drawn and kept."""

    raw: RawMaps
    scores: Scores
    layer: str
    method: str
    model: str
    targets: tuple[str, ...]
    input_size: tuple[int, ...]
    pictures: tuple[Shown, ...] = ()
    prediction: Prediction | None = None
    cautions: tuple[str, ...] = ()
    canvas: tuple[int, ...] = ()  # what the maps cover, in pixels of the input, where a model pads it at its far ends
    annotations: tuple[tuple[Annotation, ...], ...] = ()  # what the question points at, image by image

    @cached_property
    def heatmap(self) -> Heatmaps:
        """The raw map after ReLU, (bi-, tri-) linear resizing to the input and min-max, image by image: in [0, 1]."""
        return min_max(self._positive)

    @cached_property
    def _positive(self) -> Heatmaps:
        return self._on_input(self.raw.relu())

    def _on_input(self, maps: RawMaps) -> Heatmaps:
        """Bring maps to the input's size, and leave off what lies on a canvas around it."""
        on_canvas = resized(maps, self.canvas or self.input_size)
        return on_canvas[(slice(None), *(slice(pixels) for pixels in self.input_size))]

    def scale(self, index: int = 0) -> tuple[float, float]:
        """Tell which values of the rectified map the heatmap's 0 and 1 stand for, so that maps can be compared."""
        return float(self._positive[index].min()), float(self._positive[index].max())

    def share(self, mask: Any) -> list[float]:
        """Tell which share of the heat lies inside a mask, image by image (see :func:`glowmap.metrics.energy_share`).

        ``mask`` is rows x columns (of a clip or volume frames x rows x columns, of a signal samples), or one for each image;
        non-zero is inside. It has the size of the picture as it was given, or covers what the model saw, with what was padded, at
        any resolution; the rectified raw map is resized to it. Raises InputError for others.
        """
        axes = len(self.grid)
        masks, several = read_masks(mask, axes=axes)
        wrong = [crossed(one.shape) for one in masks if one.ndim != axes or not one.numel()]
        if wrong or (several and len(masks) != len(self)):
            came = f"a mask of {wrong[0]}" if wrong else f"{len(masks)} masks"
            raise InputError(
                f"{came} came for {len(self)} image{'s' * (len(self) > 1)} of {crossed(self.input_size)}; "
                "give one of the picture's size, or one for each image"
            )
        each = masks if several else masks * len(self)
        seen = parts_seen(each, self.pictures, alike=not several)
        return [self._share(index, *one) for index, one in enumerate(zip(each, seen, strict=True))]

    def _share(self, index: int, mask: Tensor, seen: Tensor | None) -> float:
        inside = (mask if seen is None else seen).to(self.raw.device)[None]
        # time, depth and rows may be sampled each at its own rate, but not the rows and columns of one picture
        strides = [pixels / cells for pixels, cells in zip(self.input_size, inside.shape[1:], strict=True)][-2:]
        if seen is None and max(strides) > _SKEWED * min(strides):
            raise InputError(
                f"a mask of {crossed(mask.shape)} has another shape than the input of {crossed(self.input_size)}; give rows x "
                "columns of the picture, or of what the model saw at any resolution"
            )
        maps = self.raw[index : index + 1].relu()
        if self.canvas not in ((), self.input_size):  # which a mask does not cover
            maps = self._on_input(maps)
        return float(energy_share(resized(maps, tuple(inside.shape[1:])), inside))

    def signed(self, index: int = 0) -> Heatmaps:
        """Give the raw map of one image at the input's resolution, what speaks against below zero."""
        return self._on_input(self.raw[index : index + 1])[0]

    @property
    def grid(self) -> tuple[int, ...]:
        """The layer's rows and columns."""
        return tuple(self.raw.shape[1:])

    def only(self, index: int) -> slice:
        """Give the place of one image in the batch; IndexError where there is none."""
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"there {'are' if len(self) > 1 else 'is'} {len(self)} image{'s' * (len(self) > 1)}, no {index}"
            )
        return slice(index % len(self), index % len(self) + 1)

    def __len__(self) -> int:
        return len(self.raw)


def resized(maps: RawMaps, size: tuple[int, ...]) -> Heatmaps:
    """Bring maps to a size: each cell's weight kept where that is coarser, (bi-, tri-) linear where it is finer."""
    if any(cells > pixels for cells, pixels in zip(maps.shape[1:], size, strict=True)):
        # finer than what is wanted, where bilinear steps over cells
        return F.interpolate(maps[:, None], size, mode="area")[:, 0]
    return F.interpolate(maps[:, None], size, mode=_RESIZE[len(size)], align_corners=False)[:, 0]


def min_max(maps: Heatmaps) -> Heatmaps:
    """Stretch each map of a batch to [0, 1] by itself; a flat one becomes zero, whatever its value."""
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    blank = is_flat(maps)[:, None]
    stretched = ((flat - low) / (high - low).masked_fill(blank, 1.0)).masked_fill(blank, 0.0)
    return stretched.reshape(maps.shape)


def is_flat(maps: Heatmaps) -> Flags:
    """Tell which maps of a batch have the same value everywhere, but for rounding."""
    flat = maps.flatten(1)
    return flat.amax(1) - flat.amin(1) <= _FLAT * flat.abs().amax(1)
