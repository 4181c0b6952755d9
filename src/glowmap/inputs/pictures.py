"""The picture that a person knows, kept beside the batch that the model gets."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glowmap.shapes import crossed


@dataclass(frozen=True)
class Picture:
    """A picture, and its visible part, which is what the model gets: left, top, right, bottom in pixels of the picture.

    Where preprocessing pads the picture, the visible part extends beyond it: its left and top edges are then below zero.
    """

    image: Image.Image
    visible: tuple[float, float, float, float]

    def visible_part(self) -> Image.Image:
        """Crop the picture to its visible part, at the picture's own resolution. Padding is black."""
        left, top, right, bottom = self._pixels()
        if (left, top, right, bottom) == (0, 0, *self.image.size):
            return self.image
        canvas = Image.new(self.image.mode, (right - left, bottom - top))  # crop() refuses large ones as bombs
        canvas.paste(self.image, (-left, -top))
        return canvas

    def _pixels(self) -> tuple[int, int, int, int]:
        """Round the visible part to whole pixels, at least one of them."""
        left, top, right, bottom = (round(edge) for edge in self.visible)
        return left, top, max(right, left + 1), max(bottom, top + 1)

    @property
    def is_cropped(self) -> bool:
        """Whether a part of the picture is not visible."""
        left, top, right, bottom = self._pixels()
        return left > 0 or top > 0 or right < self.image.width or bottom < self.image.height

    def crop_mask(self, mask: Tensor) -> Tensor | None:
        """Crop a mask of the picture's size, rows x columns, to the visible part; padding is outside the mask.

        None for a mask of another size.
        """
        width, height = self.image.size
        if tuple(mask.shape) != (height, width):
            return None
        left, top, right, bottom = self._pixels()
        return F.pad(mask, (-left, right - width, -top, bottom - height))  # negative numbers crop

    def locate(self, x: float, y: float) -> tuple[float, float] | None:
        """Convert a point in pixels of the picture to shares of the visible part's width and height.

        A whole number is the middle of a pixel. None for a point outside the picture or outside its visible part.
        """
        left, top, right, bottom = self.visible
        x, y = x + 0.5, y + 0.5
        across, down = (x - left) / (right - left), (y - top) / (bottom - top)
        is_inside = 0 <= x < self.image.width and 0 <= y < self.image.height  # and not in the padding
        return (across, down) if is_inside and 0 <= across < 1 and 0 <= down < 1 else None

    def describe(self) -> str:
        """Return the size of the picture and its visible part, for a message."""
        width, height = self.image.size
        picture = f"the picture, of {width} x {height} pixels"
        if not self.is_cropped:
            return picture
        left, top, right, bottom = self._pixels()
        first, last = (max(left, 0), max(top, 0)), (min(right, width) - 1, min(bottom, height) - 1)
        return f"the part that the model saw of {picture}: from {first[0]}, {first[1]} to {last[0]}, {last[1]}"


@dataclass(frozen=True, eq=False)
class Volume:
    """A clip or a volume in bytes: frames (slices) x rows x columns x colours, of which there are three or one (grey)."""

    values: NDArray[np.uint8]

    def crop_mask(self, mask: Tensor) -> Tensor | None:
        """Return a mask of frames x rows x columns as it is; None for a mask of another size."""
        return mask if tuple(mask.shape) == self.values.shape[:3] else None

    def describe(self) -> str:
        """Return the size of the clip or volume, for a message."""
        return f"the clip or volume, of {crossed(self.values.shape[:3])}"


@dataclass(frozen=True, eq=False)
class Signal:
    """A signal: channels x samples."""

    values: NDArray[np.float32]

    def crop_mask(self, mask: Tensor) -> Tensor | None:
        """Return a mask of the signal's samples as it is; None for a mask of another length."""
        return mask if tuple(mask.shape) == self.values.shape[1:] else None

    def describe(self) -> str:
        """Return the length of the signal, for a message."""
        return f"the signal, of {self.values.shape[1]} samples"


Drawable: TypeAlias = Picture | Volume | Signal  # what heat can be drawn over


def uncropped(image: Image.Image) -> Picture:
    """Return a picture that is visible as a whole."""
    return Picture(image, (0.0, 0.0, float(image.width), float(image.height)))
