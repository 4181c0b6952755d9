"""Reading pictures: paths, bytes, PIL pictures and arrays become RGB pictures. InputError for anything else."""

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from glowmap.errors import InputError
from glowmap.shapes import crossed

PictureLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
# 8192 x 8192. Larger pictures need gigabytes for activations. Pillow warns of decompression bombs only from 179 million on.
MAX_PIXELS = 2**26


def read_pictures(pictures: Any) -> list[Image.Image]:
    """Read one ``PictureLike``, a list of them, or an array of picture x rows x columns x colours. Raises InputError."""
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        pictures = list(pictures)
    if not isinstance(pictures, list | tuple):
        return [read_picture(pictures)]
    if not pictures:
        raise InputError("the list of pictures is empty; give at least one")
    return [read_picture(picture) for picture in pictures]


def read_picture(picture: Any) -> Image.Image:
    """Read one picture as RGB, rotated as its EXIF orientation says.

    Raises InputError for a file that is missing, damaged, too large or no picture, and for an array that is no picture.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Image.Image):
        return _decoded(lambda: picture, "the given picture")
    if isinstance(picture, bytes | bytearray):
        return _decoded(lambda: Image.open(io.BytesIO(picture)), f"the picture in {len(picture)} bytes")
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        raise InputError(
            f"{picture} is an address, and Glowmap downloads no pictures; save the picture and give its path"
        )
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
    """Open, decode and convert a picture. Raises InputError for every exception of Pillow and its plugins."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            opened = open_picture()
            check_picture_size(opened.size, name)  # read from the header, before pixels are decoded
            return _to_rgb(opened, name)
    except InputError:
        raise
    except (UnidentifiedImageError, ImportError):  # a plugin of another library may need a third one
        raise InputError(f"{name} is not a picture that Pillow can read; give a PNG, JPEG, WebP, TIFF, ...") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} is far too large; {_TOO_LARGE}") from None
    except Exception as error:
        raise InputError(f"{name} is damaged or cut short ({error}); save the picture again") from error


_TOO_LARGE = f"a picture has at most {MAX_PIXELS} pixels; crop or shrink it first"


def check_picture_size(size: tuple[int, int], name: str) -> None:
    """Raise InputError for a size (columns, rows) of more than ``MAX_PIXELS`` pixels."""
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{name} has {size[0]} x {size[1]} pixels; {_TOO_LARGE}")


def _to_rgb(picture: Image.Image, name: str) -> Image.Image:
    if 0 in picture.size:
        raise InputError(f"{name} has no pixels ({picture.width} x {picture.height}); give a picture")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # Pillow clips 16 bits at 255
        return Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8)).convert("RGB")
    if upright.mode in ("I", "F"):
        raise InputError(
            f"{name} has {upright.mode} pixels, whose range is unknown; give an array of uint8 or of floats in [0, 1]"
        )
    return upright.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    """Convert rows x columns (x 1, 3 or 4 colours) of bool, of uint8 or of floats in [0, 1]."""
    shape = crossed(array.shape)
    colours = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or colours not in (1, 3, 4):
        hint = (
            "; move the colours to the end: array.transpose(1, 2, 0)"
            if array.ndim == 3 and array.shape[0] in (1, 3, 4)
            else ""
        )
        raise InputError(
            f"an array of shape {shape} is not a picture of rows x columns x colours{hint or '; give such an array'}"
        )
    if array.size == 0:
        raise InputError(f"an array of shape {shape} has no pixels; give a picture")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError("the array has NaN or infinite values; replace them")
        if array.min() < 0 or array.max() > 1:
            raise InputError(
                f"the array's floats lie in [{array.min():.3g}, {array.max():.3g}], not in [0, 1]; "
                "divide by 255, or give the model's input as a tensor"
            )
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise InputError(f"an array of {array.dtype} has an unknown range; give uint8, or floats in [0, 1]")
    return _decoded(lambda: Image.fromarray(array[..., 0] if colours == 1 and array.ndim == 3 else array), "the array")
