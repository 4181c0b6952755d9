"""Preprocessing: how a picture becomes a model's input tensor, and which part of the picture remains in it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glowmap.errors import InputError, summarise
from glowmap.inputs import Picture, check_picture_size, uncropped

Colours: TypeAlias = float | Sequence[float]  # one number for all colours, or one each for R, G and B
Size: TypeAlias = int | tuple[int, int]  # of a square, or rows and columns
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture


@runtime_checkable
class Preprocess(Protocol):
    """Turns a picture into an input tensor (colour x rows x columns) and the part of the picture that it shows."""

    def normalised(self, mean: Colours | None, std: Colours | None) -> "Preprocess":
        """Copy with another mean or standard deviation; None leaves it unchanged."""
        ...

    @property
    def mean(self) -> Colours:
        """The mean that is subtracted from colours in [0, 1]."""

    @property
    def std(self) -> Colours:
        """The standard deviation by which the colours are divided."""

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]: ...


@dataclass(frozen=True)
class Transform:
    """A ``transform`` of a library or of the user, and ``crop``, which returns the part of the picture that it shows.

    ``mean`` and ``std`` normalise the colours. Where they differ from those of the transform, ``replaced`` holds the
    transform's own, which are undone first.
    """

    transform: Callable[[Image.Image], Tensor]
    crop: Callable[[Image.Image], Box]
    mean: Colours = 0.0
    std: Colours = 1.0
    replaced: tuple[Colours, Colours] | None = None

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]:
        box = self.crop(picture)  # first, because it refuses pictures that would fill the memory
        values = self.transform(picture)
        if self.replaced is not None:
            mean, std = (_column(colours) for colours in self.replaced)
            values = (values * std + mean - _column(self.mean)) / _column(self.std)
        return values, cropped(picture, box)

    def normalised(self, mean: Colours | None, std: Colours | None) -> "Transform":
        """Copy with another mean or standard deviation; None leaves it unchanged."""
        mean, std = (self.mean if mean is None else mean), (self.std if std is None else std)
        return replace(self, mean=mean, std=std, replaced=self.replaced or (self.mean, self.std))


def user_transform(function: Any) -> Transform:
    """Make preprocessing from a callable that turns a PIL picture into a tensor, colour x rows x columns.

    The part of the picture that the tensor shows is measured. Raises InputError where ``function`` is not callable; later, for a
    picture, where it raises or returns something else.
    """
    if not callable(function):
        raise InputError(
            f"preprocess is a callable from a picture to a tensor, not {type(function).__name__}; give such a callable"
        )

    def transform(picture: Image.Image) -> Tensor:
        try:
            values = function(picture)
        except Exception as error:  # the user's code
            raise InputError(f"preprocess raised {summarise(error)}; check it with a PIL picture in RGB") from error
        if not isinstance(values, Tensor) or values.ndim != 3 or not values.is_floating_point():
            kind = (
                f"a {values.dtype} tensor of {tuple(values.shape)}"
                if isinstance(values, Tensor)
                else type(values).__name__
            )
            raise InputError(
                f"preprocess returned {kind}; return a floating point tensor of colour x rows x columns, without a batch axis"
            )
        return values

    return Transform(transform, MeasuredCrop(transform))


@dataclass(frozen=True)
class ClipTransform:
    """A library's transform of video clips; it takes no pictures."""

    transform: Any

    def clip(self, frames: Tensor) -> Tensor:
        """Turn decoded frames into the model's input.

        ``frames`` are uint8, (batch x) frame x colour x rows x columns; the result is batch x colour x frame x rows x columns.
        """
        if frames.ndim not in (4, 5):
            raise InputError(
                f"frames of {tuple(frames.shape)} are not a clip; give batch x frame x colour x rows x columns of uint8"
            )
        clips: Tensor = self.transform(frames)
        return clips if clips.ndim == 5 else clips[None]

    def normalised(self, mean: Colours | None, std: Colours | None) -> "ClipTransform":
        """Copy with another mean or standard deviation; None leaves it unchanged."""
        transform = copy.copy(self.transform)
        colours = (self.mean if mean is None else mean), (self.std if std is None else std)
        transform.mean, transform.std = ([float(c) for c in np.broadcast_to(values, 3)] for values in colours)
        return ClipTransform(transform)

    @property
    def mean(self) -> Colours:
        return self.transform.mean  # type: ignore[no-any-return]

    @property
    def std(self) -> Colours:
        return self.transform.std  # type: ignore[no-any-return]

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]:
        """Refuse a picture."""
        raise InputError(
            "a video model takes clips, not a picture; give a tensor, batch x colour x frame x rows x columns as the model "
            "takes it, or decoded frames, batch x frame x colour x rows x columns of uint8"
        )


def cropped(picture: Image.Image, box: Box) -> Picture:
    """Combine a picture with the part that the model saw, in its pixels; a larger part means padding."""
    left, top, right, bottom = box
    width, height = map(float, picture.size)
    slack = 0.5  # less than a pixel is rounding, not padding
    if min(left, top) >= -slack and right <= width + slack and bottom <= height + slack:
        return Picture(picture, (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)))
    return Picture(picture, box)


def crop_box(steps: Sequence[Any], picture: Image.Image) -> Box:
    """Return the part of a picture that remains after the transforms of torchvision, timm or open_clip.

    Raises InputError for a picture that would fill the memory on the way, such as a narrow strip.
    """
    size = np.array([picture.width, picture.height])  # columns, rows
    scale, offset = np.ones(2), np.zeros(2)  # of the current pixels, in pixels of the picture
    for step in steps:
        kind = type(step).__name__
        if kind in ("Resize", "ResizeKeepRatio"):
            resized = _resized(step, size)
            check_picture_size(
                (int(resized[0]), int(resized[1])), f"the picture of {picture.size}, resized for this model,"
            )
            scale, size = scale * size / resized, resized
        elif kind in ("CenterCrop", "CenterCropOrPad"):
            crop = np.array(_pair(step.size)[::-1])
            start = [_start(int(side), int(wanted)) for side, wanted in zip(size, crop, strict=True)]
            offset, size = offset + np.array(start) * scale, crop
    right, bottom = offset + size * scale
    return float(offset[0]), float(offset[1]), float(right), float(bottom)


def _resized(step: Any, size: Any) -> Any:
    """Return columns and rows after a resizing step: fixed, by the shorter side, or within or around a frame."""
    target = step.size
    if type(step).__name__ == "ResizeKeepRatio":
        ratios = size / np.array(_pair(target)[::-1])
        ratio = ratios.max() * step.longest + ratios.min() * (1 - step.longest)
        return np.array([round(side / ratio) for side in size.tolist()])
    if not isinstance(target, int) and len(target) == 2:
        return np.array(target[::-1])
    shorter = target if isinstance(target, int) else target[0]
    return np.array([int(shorter * side / min(size.tolist())) for side in size.tolist()])


def _start(side: int, wanted: int) -> int:
    """Return where a centred crop begins on a side; negative where the side is too short and is padded."""
    return -((wanted - side) // 2) if wanted > side else round((side - wanted) / 2)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


@dataclass(frozen=True)
class MeasuredCrop:
    """The part of a picture that a ``transform`` shows, measured with pictures whose grey values are coordinates.

    For transforms that do not describe themselves. Any linear change of the colours is allowed. Exact to about a thousandth of
    the picture. Raises InputError where the result is not one upright rectangle of the picture.
    """

    transform: Callable[[Image.Image], Tensor]

    @cached_property
    def _boxes(self) -> dict[tuple[int, int], Box]:
        return {}

    def __call__(self, picture: Image.Image) -> Box:
        if picture.size not in self._boxes:
            self._boxes[picture.size] = self._measure(*picture.size)
        return self._boxes[picture.size]

    def _measure(self, width: int, height: int) -> Box:
        across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
        down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
        black, white = (self._grey(np.full((height, width), level)) for level in (0.0, 255.0))
        contrast = white - black
        inside = np.abs(contrast) > np.abs(contrast).max() / 2  # the rest is padding
        columns, rows = inside.any(0), inside.any(1)
        if not inside.any() or not inside[rows][:, columns].all():
            raise InputError(_NO_RECTANGLE)
        across, down = ((self._grey(ramp) - black) / np.where(inside, contrast, 1) for ramp in (across, down))
        left, right = _edges(across[rows].mean(0), columns, width)
        top, bottom = _edges(down[:, columns].mean(1), rows, height)
        return left, top, right, bottom

    def _grey(self, grey: Any) -> Any:
        values = self.transform(Image.fromarray(grey.round().astype(np.uint8)).convert("RGB"))
        if values.ndim != 3:
            raise InputError(_NO_RECTANGLE)
        return values.double().mean(0).numpy()


_NO_RECTANGLE = (
    "the preprocessing turns a picture into something other than one rectangle of it (tiles, patches in a row); give its result "
    "as a tensor, or as a dict of the model's keywords"
)


def _edges(profile: Any, inside: Any, side: int) -> tuple[float, float]:
    """Fit the picture coordinates of both ends of an output axis from its profile of grey values in [0, 1]."""
    pixels = np.flatnonzero(inside)
    if side < 3 or len(pixels) < 3:  # too short to measure, and to be cropped
        return 0.0, float(side)
    margin = len(pixels) // 8  # resampling bends the ramp at its ends
    middle = pixels[margin : len(pixels) - margin]
    slope, start = np.polyfit(middle + 0.5, profile[middle] * (side - 1) + 0.5, 1)
    if (
        not slope > 0
        or np.abs(slope * (middle + 0.5) + start - profile[middle] * (side - 1) - 0.5).max() > 0.02 * side + 1
    ):
        raise InputError(_NO_RECTANGLE)
    ends = [start + slope * pixels[0], start + slope * (pixels[-1] + 1)]
    near = max(0.004 * side, 0.25 * slope)  # an end this close to the picture's edge is the edge
    ends = [0.0 if abs(ends[0]) < near else ends[0], float(side) if abs(ends[1] - side) < near else ends[1]]
    step = (ends[1] - ends[0]) / len(pixels)
    return float(ends[0] - step * pixels[0]), float(ends[1] + step * (len(profile) - 1 - pixels[-1]))


def _column(colours: Colours) -> Tensor:
    return torch.as_tensor(colours, dtype=torch.float32).reshape(-1, 1, 1)


@dataclass(frozen=True)
class ResizedAndNormalised:
    """Resize to ``size``, scale to [0, 1], subtract ``mean``, divide by ``std``.

    ``size`` is rows x columns, a number for a square, or None to leave the size unchanged. In the last case rows and columns
    are rounded up to a multiple of ``multiple``, for networks that need it.
    """

    size: Size | None = None
    mean: Colours = 0.0
    std: Colours = 1.0
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.size is not None:
            rows, columns = self._rows_columns()
            if min(rows, columns) < 1:
                raise InputError(f"a size of {self.size} has no pixels; give rows and columns of at least 1")
            check_picture_size((columns, rows), f"the size {self.size}")
        if (_colours(self.mean, "mean").abs() > 1).any():
            raise InputError(f"mean={self.mean} is not in the range of colours in [0, 1]; divide mean and std by 255")
        if (_colours(self.std, "std") == 0).any():
            raise InputError(f"std={self.std} divides by zero; give the standard deviation of the training pictures")

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]:
        resized = picture
        if self.size is not None:
            resized = picture.resize(self._rows_columns()[::-1], Image.Resampling.BILINEAR)
        elif any(side % self.multiple for side in picture.size):
            width, height = (-(-side // self.multiple) * self.multiple for side in picture.size)
            resized = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        return (pixels - _colours(self.mean, "mean")) / _colours(self.std, "std"), uncropped(picture)

    def normalised(self, mean: Colours | None, std: Colours | None) -> "ResizedAndNormalised":
        """Copy with another mean or standard deviation; None leaves it unchanged."""
        return replace(self, mean=self.mean if mean is None else mean, std=self.std if std is None else std)

    def _rows_columns(self) -> tuple[int, int]:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if not isinstance(size, tuple | list) or [type(side) for side in size] != [int, int]:
            raise InputError(f"a size of {self.size!r} is not understood; give a number, or (rows, columns)")
        return size[0], size[1]


def _colours(values: Colours, what: str) -> Tensor:
    try:
        colours = torch.as_tensor(values, dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        colours = torch.empty(0)
    if len(colours) not in (1, 3) or not colours.isfinite().all():
        raise InputError(
            f"{what}={values} is not one number or three; give one for all colours, or one each for R, G and B"
        )
    return colours[:, None, None]
