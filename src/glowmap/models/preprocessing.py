"""How a picture becomes a model's input: what such a step promises, and libraries' own transforms kept to that promise."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glowmap.errors import InputError
from glowmap.inputs import Picture, refuse_gigantic, whole

Colours: TypeAlias = float | Sequence[float]
Box: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


@runtime_checkable
class Preprocess(Protocol):
    """How a picture becomes the model's input (colour x rows x columns), and which part of the picture goes in."""

    def normalised(self, mean: Colours | None, std: Colours | None) -> "Preprocess":
        """Copy with another mean or standard deviation; None keeps the own one."""
        ...

    @property
    def mean(self) -> Colours:
        """What is subtracted from the colours in [0, 1]."""

    @property
    def std(self) -> Colours:
        """What the colours are divided by."""

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]: ...


@dataclass(frozen=True)
class Preset:
    """A library's own ``transform`` for the values, and the part of the picture that it keeps, in the picture's pixels."""

    transform: Callable[[Image.Image], Tensor]
    seen: Callable[[Image.Image], Box]
    mean: Colours = 0.0
    std: Colours = 1.0
    own: tuple[Colours, Colours] | None = None  # the transform's mean and std, where others are wanted

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]:
        seen = self.seen(picture)  # which refuses what would fill the memory, before it does
        values = self.transform(picture)
        if self.own is not None:
            mean, std = (_column(colours) for colours in self.own)
            values = (values * std + mean - _column(self.mean)) / _column(self.std)
        return values, shown(picture, seen)

    def normalised(self, mean: Colours | None, std: Colours | None) -> "Preset":
        """Copy with another mean or standard deviation; None keeps the own one."""
        mean, std = (self.mean if mean is None else mean), (self.std if std is None else std)
        return replace(self, mean=mean, std=std, own=self.own or (self.mean, self.std))


@dataclass(frozen=True)
class Clips:
    """A library's own transform for clips (batch x frame x colour x rows x columns of uint8); a picture alone is refused."""

    transform: Any

    def clip(self, frames: Tensor) -> Tensor:
        """Turn frames as they were decoded into the model's input, batch x colour x frame x rows x columns."""
        if frames.ndim not in (4, 5):
            raise InputError(
                f"frames of {tuple(frames.shape)} are no clip; give batch x frame x colour x rows x columns of uint8"
            )
        clips: Tensor = self.transform(frames)
        return clips if clips.ndim == 5 else clips[None]

    def normalised(self, mean: Colours | None, std: Colours | None) -> "Clips":
        """Copy with another mean or standard deviation; None keeps the own one."""
        transform = copy.copy(self.transform)
        wanted = (self.mean if mean is None else mean), (self.std if std is None else std)
        transform.mean, transform.std = ([float(c) for c in np.broadcast_to(colours, 3)] for colours in wanted)
        return Clips(transform)

    @property
    def mean(self) -> Colours:
        return self.transform.mean  # type: ignore[no-any-return]

    @property
    def std(self) -> Colours:
        return self.transform.std  # type: ignore[no-any-return]

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]:
        raise InputError(
            "a video model takes clips, not a picture; give a tensor, batch x colour x frame x rows x columns as the model "
            "takes it, or batch x frame x colour x rows x columns of uint8 as it was decoded"
        )


def shown(picture: Image.Image, seen: Box) -> Picture:
    """Say what a model saw of a picture, in its pixels; where that is more than the picture, it was padded."""
    left, top, right, bottom = seen
    width, height = map(float, picture.size)
    slack = 0.5  # a part of a pixel is no padding
    if min(left, top) >= -slack and right <= width + slack and bottom <= height + slack:
        return Picture(picture, (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)))
    return Picture(picture, seen)


def cut(steps: Sequence[Any], picture: Image.Image) -> Box:
    """Follow a picture through transforms as torchvision, timm and open_clip chain them, to the part that is left of it.

    Raises InputError for a picture that would fill the memory on the way, such as a narrow strip.
    """
    size = np.array([picture.width, picture.height])  # columns, rows
    scale, offset = np.ones(2), np.zeros(2)  # of a pixel now, in the picture's own
    for step in steps:
        kind = type(step).__name__
        if kind in ("Resize", "ResizeKeepRatio"):
            resized = _resized(step, size)
            refuse_gigantic(
                (int(resized[0]), int(resized[1])), f"the picture of {picture.size}, resized for this model,"
            )
            scale, size = scale * size / resized, resized
        elif kind in ("CenterCrop", "CenterCropOrPad"):
            wanted = np.array(_pair(step.size)[::-1])
            start = [_start(int(side), int(want)) for side, want in zip(size, wanted, strict=True)]
            offset, size = offset + np.array(start) * scale, wanted
    right, bottom = offset + size * scale
    return float(offset[0]), float(offset[1]), float(right), float(bottom)


def _resized(step: Any, size: Any) -> Any:
    """Columns and rows after a step that resizes: to given ones, to a shorter side, or within or around a frame."""
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
    """Tell where a centred part begins on a side; before its beginning where the side is too short and is padded."""
    return -((wanted - side) // 2) if wanted > side else round((side - wanted) / 2)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return (size[0], size[0]) if len(size) == 1 else (size[0], size[1])


@dataclass(frozen=True)
class Measured:
    """The part of a picture that a transform keeps, measured by sending pictures through it whose greys are coordinates.

    For transforms of many kinds that do not say what they do. ``colours`` gives what comes out as colours in [0, 1]. Right to
    about a thousandth of the picture; InputError where what comes out is no upright rectangle of the picture.
    """

    colours: Callable[[Image.Image], Tensor]

    @cached_property
    def _known(self) -> dict[tuple[int, int], Box]:
        return {}

    def __call__(self, picture: Image.Image) -> Box:
        if picture.size not in self._known:
            self._known[picture.size] = self._measured(*picture.size)
        return self._known[picture.size]

    def _measured(self, width: int, height: int) -> Box:
        across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
        down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
        white, across_out, down_out = (self._grey(grey) for grey in (np.full((height, width), 255.0), across, down))
        inside = white > 0.5  # the rest is padding
        columns, rows = inside.any(0), inside.any(1)
        if not inside.any() or not inside[rows][:, columns].all():
            raise InputError(_NO_RECTANGLE)
        left, right = _edges(across_out[rows].mean(0), columns, width)
        top, bottom = _edges(down_out[:, columns].mean(1), rows, height)
        return left, top, right, bottom

    def _grey(self, grey: Any) -> Any:
        values = self.colours(Image.fromarray(grey.round().astype(np.uint8)).convert("RGB"))
        if values.ndim != 3:
            raise InputError(_NO_RECTANGLE)
        return values.double().mean(0).numpy()


_NO_RECTANGLE = (
    "this model's processor cuts a picture into other than one rectangle (tiles, patches in a row); "
    "give what the processor makes of it as a dict of the model's keywords"
)


def _edges(profile: Any, inside: Any, side: int) -> tuple[float, float]:
    """Fit where the first and the last pixel that came out begin and end on a side of the picture."""
    places = np.flatnonzero(inside)
    if side < 3 or len(places) < 3:  # too short to measure, and to cut
        return 0.0, float(side)
    margin = len(places) // 8  # resampling bends the ramp at its ends
    middle = places[margin : len(places) - margin]
    slope, start = np.polyfit(middle + 0.5, profile[middle] * (side - 1) + 0.5, 1)
    if (
        not slope > 0
        or np.abs(slope * (middle + 0.5) + start - profile[middle] * (side - 1) - 0.5).max() > 0.02 * side + 1
    ):
        raise InputError(_NO_RECTANGLE)
    ends = [start + slope * places[0], start + slope * (places[-1] + 1)]
    near = max(0.004 * side, 0.25 * slope)  # of an edge of the picture: it is the edge
    ends = [0.0 if abs(ends[0]) < near else ends[0], float(side) if abs(ends[1] - side) < near else ends[1]]
    step = (ends[1] - ends[0]) / len(places)
    return float(ends[0] - step * places[0]), float(ends[1] + step * (len(profile) - 1 - places[-1]))


def _column(colours: Colours) -> Tensor:
    return torch.as_tensor(colours, dtype=torch.float32).reshape(-1, 1, 1)


Size = int | tuple[int, int]


@dataclass(frozen=True)
class ResizedAndNormalised:
    """Resize to rows x columns (a number is a square, None leaves the size), scale to [0, 1], subtract mean, divide by std.

    Where the size is left, rows and columns grow to the next ``multiple``, for networks that take no other.
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
            refuse_gigantic((columns, rows), f"the size {self.size}")
        if (_colours(self.mean, "mean").abs() > 1).any():
            raise InputError(f"mean={self.mean} is not of colours in [0, 1]; divide it by 255, and std too")
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
        return (pixels - _colours(self.mean, "mean")) / _colours(self.std, "std"), whole(picture)

    def normalised(self, mean: Colours | None, std: Colours | None) -> "ResizedAndNormalised":
        """Copy with another mean or standard deviation; None keeps the own one."""
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
