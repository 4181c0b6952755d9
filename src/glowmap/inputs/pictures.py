"""The picture that a person knows, kept beside the batch that the model gets."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glowmap.shapes import Images, crossed


@dataclass(frozen=True)
class Picture:
    """A picture as it was given, and what the model saw of it: left, top, right, bottom in its pixels.

    Where the model's preprocessing pads, it saw more than the picture: these edges lie outside of it, below zero at the left
    and at the top.
    """

    image: Image.Image
    seen: tuple[float, float, float, float]

    def as_seen(self) -> Image.Image:
        """Cut out what the model saw, at the picture's own resolution; what was padded is black."""
        left, top, right, bottom = self.box
        if (left, top, right, bottom) == (0, 0, *self.image.size):
            return self.image
        canvas = Image.new(self.image.mode, (right - left, bottom - top))  # crop() refuses large ones as bombs
        canvas.paste(self.image, (-left, -top))
        return canvas

    @property
    def box(self) -> tuple[int, int, int, int]:
        """What the model saw, in whole pixels and at least one of them."""
        left, top, right, bottom = (round(edge) for edge in self.seen)
        return left, top, max(right, left + 1), max(bottom, top + 1)

    @property
    def is_cut(self) -> bool:
        """Whether a part of the picture was not seen."""
        left, top, right, bottom = self.box
        return left > 0 or top > 0 or right < self.image.width or bottom < self.image.height

    def part_of(self, mask: Tensor) -> Tensor | None:
        """Bring a mask of the picture's own size to what the model saw, with nothing marked in what was padded.

        None for a mask of another size.
        """
        width, height = self.image.size
        if tuple(mask.shape) != (height, width):
            return None
        left, top, right, bottom = self.box
        return F.pad(mask, (-left, right - width, -top, bottom - height))  # which cuts off where a number is negative

    def place(self, x: float, y: float) -> tuple[float, float] | None:
        """Tell where a point in the picture's pixels lies in what the model saw: shares of its columns and rows.

        None for a point outside the picture, or in a part of it that the model did not see. A whole number means the middle of
        a pixel.
        """
        left, top, right, bottom = self.seen
        x, y = x + 0.5, y + 0.5
        across, down = (x - left) / (right - left), (y - top) / (bottom - top)
        there = 0 <= x < self.image.width and 0 <= y < self.image.height  # and not in what was padded
        return (across, down) if there and 0 <= across < 1 and 0 <= down < 1 else None

    def spelled(self) -> str:
        """Say how large the picture is, and which part of it the model saw."""
        width, height = self.image.size
        whole_picture = f"the picture, of {width} x {height} pixels"
        if not self.is_cut:
            return whole_picture
        left, top, right, bottom = self.box
        first, last = (max(left, 0), max(top, 0)), (min(right, width) - 1, min(bottom, height) - 1)
        return f"what the model saw of {whole_picture}: from {first[0]}, {first[1]} to {last[0]}, {last[1]}"


@dataclass(frozen=True, eq=False)
class Volume:
    """A clip or a volume as the model took it, in bytes: frames (slices) x rows x columns x colours, three or one (grey)."""

    values: NDArray[np.uint8]

    def part_of(self, mask: Tensor) -> Tensor | None:
        """Take a mask of its own size as it is; None for a mask of another size."""
        return mask if tuple(mask.shape) == self.values.shape[:3] else None

    def place(self, _x: float, _y: float) -> None:
        """Tell that a point of two coordinates is none of a clip or volume."""

    def spelled(self) -> str:
        """Say how large the clip or volume is."""
        return f"the clip or volume, of {crossed(self.values.shape[:3])}"


@dataclass(frozen=True, eq=False)
class Signal:
    """A signal as the model took it: channels x samples."""

    values: NDArray[np.float32]

    def part_of(self, mask: Tensor) -> Tensor | None:
        """Take a mask of its own length as it is; None for a mask of another."""
        return mask if tuple(mask.shape) == self.values.shape[1:] else None

    def place(self, _x: float, _y: float) -> None:
        """Tell that a point of two coordinates is none of a signal."""

    def spelled(self) -> str:
        """Say how long the signal is."""
        return f"the signal, of {self.values.shape[1]} samples"


Shown: TypeAlias = Picture | Volume | Signal  # what heat can be drawn over


def pictures_of(images: Images) -> tuple[Shown, ...]:
    """Show tensors as pictures, clips or volumes: as they are where they lie in [0, 1], else stretched to their own range.

    Three channels are colours (with three spatial axes: of a clip), any other number of them becomes their mean in grey. A
    signal keeps its values. There is nothing to show of more than three spatial axes.
    """
    axes = images.ndim - 2
    if axes == 1:
        return tuple(Signal(one.detach().float().cpu().numpy().copy()) for one in images)
    if axes == 2:
        return tuple(
            whole(Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one).convert("RGB")) for one in _bytes(images)
        )
    return tuple(Volume(one) for one in _bytes(images)) if axes == 3 else ()


def _bytes(images: Images) -> NDArray[np.uint8]:
    shown = images.detach().float()
    if shown.shape[1] != 3:
        shown = shown.mean(1, keepdim=True)
    values = tuple(range(1, shown.ndim))
    low, high = shown.amin(values, keepdim=True), shown.amax(values, keepdim=True)
    in_unit = (low >= 0) & (high <= 1)
    low, high = low.masked_fill(in_unit, 0.0), high.masked_fill(in_unit, 1.0)
    scaled = (shown - low) / (high - low).clamp_min(torch.finfo(shown.dtype).tiny) * 255
    return np.ascontiguousarray(scaled.round().byte().movedim(1, -1).cpu().numpy())


def whole(image: Image.Image) -> Picture:
    """Say that the model saw the whole picture."""
    return Picture(image, (0.0, 0.0, float(image.width), float(image.height)))
