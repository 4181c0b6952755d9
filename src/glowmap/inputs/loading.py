"""Pictures in: paths, bytes, PIL pictures and arrays become RGB pictures; what cannot be explained is refused here."""

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
# 8192 x 8192. Larger pictures cost gigabytes of activations; Pillow's own guard against bombs begins at 179 million.
MAX_PIXELS = 2**26


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
