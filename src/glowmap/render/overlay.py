"""A heat map over its picture: cold places show the picture, hot places glow."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from glowmap.errors import OutputError
from glowmap.render.colormap import COLORMAPS, DIVERGING, colorize, unit

# the cold picture gives up some colour, and its highlights some light, so that no sunny wall outshines the heat;
# shadows keep all they have, so that a night photo stays readable
_GREYED = 0.3
_DIMMED = 0.35
# heat at which the map is as opaque as it gets: beyond it the colour alone tells warm from hot
_FULL = 0.8


def overlay(
    picture: Image.Image, heat: NDArray[np.floating[Any]], *, colormap: str = "glow", opacity: float = 0.75
) -> Image.Image:
    """Lay a heat map over its picture, each place as opaque as it is hot.

    ``heat`` is ``rows x columns`` in [0, 1] at any resolution; opacity 0 gives the picture back, and 1 hides it where
    the heat is 1. With a diverging colormap 0.5 is the cold value. OutputError for a map or opacity outside [0, 1].
    """
    check_opacity(opacity)
    COLORMAPS[colormap]
    values = resize_heat(heat, rows=picture.height, columns=picture.width)
    return glowing(_stepped_back(picture.convert("RGB"), opacity), values, colormap, opacity)


def glowing(ground: Image.Image, values: NDArray[np.float32], colormap: str, opacity: float) -> Image.Image:
    """Lay heat of the ground's own size over it, each place as opaque as it is hot."""
    cover = np.rint(np.float32(255 * opacity) * eased(values, colormap)).astype(np.uint8)
    return Image.composite(Image.fromarray(colorize(values, colormap)), ground, Image.fromarray(cover))


def resize_heat(heat: NDArray[np.floating[Any]], *, rows: int, columns: int) -> NDArray[np.float32]:
    """Resize a map in [0, 1] bilinearly, pixel centres kept; a reduced map averages all that it covers."""
    if heat.ndim != 2 or not heat.size:
        raise OutputError(f"a heat map has rows and columns, and this one has shape {heat.shape}; pass one at a time")
    values = unit(heat)
    if values.shape == (rows, columns):
        return values
    resized = Image.fromarray(values).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)


def eased(values: NDArray[np.float32], colormap: str) -> NDArray[np.float32]:
    """Say how far each value covers what lies below: 0 where it is cold, 1 from a strength on below the highest."""
    strength = np.abs(2 * values - 1) if colormap in DIVERGING else values
    reached = (strength / np.float32(_FULL)).clip(0, 1)
    return np.asarray(reached * reached * (3 - 2 * reached))


def _stepped_back(picture: Image.Image, opacity: float) -> Image.Image:
    grey = picture.convert("L")
    paler = Image.blend(grey.convert("RGB"), picture, 1 - _GREYED * opacity)
    kept = grey.point([round(255 - _DIMMED * opacity * level) for level in range(256)])
    return ImageChops.multiply(paler, kept.convert("RGB"))


def check_opacity(opacity: float) -> None:
    """Raise an OutputError unless the opacity lies in [0, 1]."""
    if not 0 <= opacity <= 1:
        raise OutputError(f"opacity runs from 0 (the picture) to 1 (the colour), and {opacity} is neither; try 0.75")
