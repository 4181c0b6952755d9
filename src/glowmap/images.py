"""Pictures in: paths, bytes, PIL pictures and arrays become RGB pictures; what cannot be explained is refused here."""

import io
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from glowmap.errors import InputError
from glowmap.shapes import Images, crossed
from glowmap.structure import mapped, replaced, tensors_in

PictureLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

# 8192 x 8192. Larger pictures cost gigabytes of activations; Pillow's own guard against bombs begins at 179 million.
MAX_PIXELS = 2**26
_PICTURES = ("pixel_values", "image", "images")  # keywords under which models take them


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


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes: the model's arguments, the image tensor among them, and the pictures it came from."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    images: Images
    pictures: tuple[Shown, ...]

    def copied(self) -> "Batch":
        """Copy every tensor once, so that the model may write into what it is given."""
        own: dict[int, Tensor] = {}

        def copy_once(tensor: Tensor) -> Tensor:
            if id(tensor) not in own:
                own[id(tensor)] = tensor.detach().clone()
            return own[id(tensor)]

        arguments, keywords = mapped([self.arguments, self.keywords], copy_once)
        return Batch(arguments, keywords, copy_once(self.images), self.pictures)

    def changed(self, change: Callable[[Images], Images]) -> "Batch":
        """Copy with other images, and whatever else the model takes as it was."""
        new = change(self.images)
        arguments, keywords = replaced([self.arguments, self.keywords], self.images, new)  # wherever it is given
        return Batch(arguments, keywords, new, self.pictures)


def read_pictures(pictures: Any) -> list[Image.Image]:
    """Read one picture or several (``PictureLike``); an array of four axes is a batch. InputError for what is none."""
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        pictures = list(pictures)
    if not isinstance(pictures, list | tuple):
        return [read_picture(pictures)]
    if not pictures:
        raise InputError("an empty list of pictures; give at least one")
    return [read_picture(picture) for picture in pictures]


def read_picture(picture: Any) -> Image.Image:
    """Read one picture as RGB, turned upright as its EXIF orientation says.

    Raises InputError for a missing, truncated, non-image or gigantic file, and for arrays that are no picture.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Image.Image):
        return _decoded(lambda: picture, "the given picture")
    if isinstance(picture, bytes | bytearray):
        return _decoded(lambda: Image.open(io.BytesIO(picture)), f"what the {len(picture)} bytes given hold")
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        raise InputError(f"{picture} is an address, and nothing is downloaded here; save the picture and give its path")
    if isinstance(picture, str | os.PathLike):
        return _from_file(Path(picture))
    raise InputError(
        f"a picture is a path, bytes, a PIL picture or an array, not {type(picture).__name__}; convert it to one of these"
    )


def _from_file(path: Path) -> Image.Image:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give one picture in it")
        with path.open("rb") as stream:
            if not stream.read(1):
                raise InputError(f"{path} is an empty file; give a picture")
            stream.seek(0)
            return _decoded(lambda: Image.open(stream), str(path))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; check the path (the working folder is {Path.cwd()})") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise InputError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); check the path"
        ) from error


def _decoded(open_picture: Callable[[], Image.Image], name: str) -> Image.Image:
    """Open, decode and convert a picture; whatever Pillow's many plugins raise for a broken one becomes an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower, and no warning
            opened = open_picture()
            refuse_gigantic(opened.size, name)  # known from the header, before a byte of pixels is decoded
            return _to_rgb(opened, name)
    except InputError:
        raise
    except (UnidentifiedImageError, ImportError):  # the latter where another library adds formats that need a third
        raise InputError(f"{name} is no picture that Pillow can read; give a PNG, JPEG, WebP, TIFF, ...") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} is gigantic; {_TOO_LARGE}") from None
    except Exception as error:
        raise InputError(f"{name} is damaged or cut short ({error}); save the picture again") from error


_TOO_LARGE = f"more than {MAX_PIXELS} pixels do not fit a network; cut or reduce it first"


def refuse_gigantic(size: tuple[int, int], name: str) -> None:
    """Raise InputError for more pixels (columns x rows) than a network can take."""
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{name} has {size[0]} x {size[1]} pixels; {_TOO_LARGE}")


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if 0 in picture.size:
        raise InputError(f"{name} has no pixels ({picture.width} x {picture.height}); give a picture")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
    if upright.mode in ("I", "F"):
        raise InputError(
            f"{name} has {upright.mode} pixels, whose range Pillow does not know; give an array of uint8 or of floats in [0, 1]"
        )
    return upright.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    """Take rows x columns (x 1, 3 or 4 colours) of uint8, or of floats in [0, 1]."""
    shape = crossed(array.shape)
    colours = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or colours not in (1, 3, 4):
        hint = (
            "; move the colours to the end: array.transpose(1, 2, 0)"
            if array.ndim == 3 and array.shape[0] in (1, 3, 4)
            else ""
        )
        raise InputError(
            f"an array of shape {shape} is no picture of rows x columns x colours{hint or '; give such an array'}"
        )
    if array.size == 0:
        raise InputError(f"an array of shape {shape} has no pixels; give a picture")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError("the array holds NaN or infinity; mend the values before asking about them")
        if array.min() < 0 or array.max() > 1:
            raise InputError(
                f"the array's floats lie in [{array.min():.3g}, {array.max():.3g}], not in [0, 1]; "
                "divide by 255, or give a ready-made tensor of the model's input"
            )
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise InputError(f"an array of {array.dtype} has no known range; give uint8, or floats in [0, 1]")
    return _decoded(lambda: Image.fromarray(array[..., 0] if colours == 1 and array.ndim == 3 else array), "the array")


def as_batch(images: Any, expected: str) -> Batch:
    """Take a model's own input as it is: a tensor, a tuple of arguments, or a dict (or other mapping) of keyword arguments.

    The tensors may stand in lists, dicts, named tuples and dataclasses among them. The image tensor is the first floating
    tensor of three axes or more, of those with most axes. Raises InputError for NaN, for no image tensor, and for pictures,
    which a bare module cannot take (``expected`` says what can).
    """
    if isinstance(images, list) and any(isinstance(image, Tensor) for image in images):
        raise InputError(
            "a list of tensors is ambiguous; torch.stack(...) a batch, or give a tuple of the model's arguments"
        )
    by_name = isinstance(images, Mapping) and not is_dataclass(images)
    several = isinstance(images, tuple) and not hasattr(images, "_fields")  # a named tuple is one argument
    arguments = images if several else () if by_name else (images,)
    keywords = dict(images.items()) if by_name else {}
    image = _image_in([*arguments, *keywords.values()], keywords, f"a {type(images).__name__} came, but {expected}")
    _check_values(image)
    # A model may write into its input (and autograd may not save what inference mode made), so it gets copies.
    return Batch(arguments, keywords, image, pictures_of(image)).copied()


def _image_in(given: list[Any], keywords: Mapping[str, Any], expected: str) -> Tensor:
    """Find the image tensor among what a model is given, wherever it stands."""
    tensors = list(tensors_in(given))
    maps = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim >= 3]
    if not tensors:
        raise InputError(expected)
    if not maps:
        shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)
        raise InputError(
            f"no image among the tensors given ({shapes}); give batch x colour x rows x columns in floating point"
        )
    named = [value for key, value in keywords.items() if key in _PICTURES and any(value is one for one in maps)]
    image: Tensor = max([*named, *maps], key=lambda tensor: tensor.ndim)  # the first of those with most axes
    if image.ndim == 5 and image.shape[2] in (1, 3) and image.shape[1] > 3:
        raise InputError(
            f"a clip of {crossed(image.shape)} has its frames before its colours; here it is batch x colours x frames x rows x "
            "columns: wrap the model in a module whose forward(clips) returns model(clips.transpose(1, 2))"
        )
    beside = next((one for one in given if isinstance(one, list) and any(part is image for part in one)), [])
    if image.ndim == 3 and (len(beside) > 1 or (beside and image.shape[0] in (1, 3))):
        raise InputError(
            f"a list of tensors of {crossed(image.shape)} may be pictures, one each, which have no batch axis; "
            "torch.stack(...) them to one tensor of batch x colour x rows x columns"
        )
    return image


def _check_values(images: Tensor) -> None:
    if 0 in images.shape:
        raise InputError(f"the input is empty (shape {tuple(images.shape)}); give at least one image")
    if not images.isfinite().all():
        wrong = [i for i, image in enumerate(images) if not image.isfinite().all()]
        raise InputError(
            f"the input holds NaN or infinity in image {', '.join(map(str, wrong[:10]))}; mend it before asking"
        )


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
