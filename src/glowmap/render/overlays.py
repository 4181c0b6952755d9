"""A coarse map brought to the edges of its picture: the guided filter of He, Sun and Tang (ECCV 2010, eq. 14 to 16)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from glowmap.errors import OutputError
from glowmap.render.colormap import COLORMAPS, DIVERGING, colorize, unit

_SMOOTHEST = 1e-3  # colours in [0, 1] that vary less than this within a window are no edge


def follow_edges(
    heat: NDArray[np.floating[Any]], picture: Image.Image, radius: int | None = None
) -> NDArray[np.float32]:
    """Enlarge ``rows x columns`` of heat in [0, 1] to the picture, its borders drawn to where the picture's colours change.

    Within each window of ``radius`` pixels (by default half a cell of the heat) the heat becomes the linear function of the
    colours that fits it best. What the map says stays as coarse as it was: only its borders look finer.
    """
    enlarged = resize_heat(heat, rows=picture.height, columns=picture.width).astype(np.float64)
    cell = max(picture.height / heat.shape[0], picture.width / heat.shape[1])
    reach = max(1, round(cell / 2)) if radius is None else radius
    colours = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    mean_colour, mean_heat = _averaged(colours, reach), _averaged(enlarged, reach)
    together = _averaged(colours * enlarged[..., None], reach) - mean_colour * mean_heat[..., None]
    pairs = _averaged(colours[..., :, None] * colours[..., None, :], reach)
    spread = pairs - mean_colour[..., :, None] * mean_colour[..., None, :] + _SMOOTHEST * np.eye(3)
    slope = np.linalg.solve(spread, together[..., None])[..., 0]
    offset = mean_heat - (slope * mean_colour).sum(-1)
    followed = (_averaged(slope, reach) * colours).sum(-1) + _averaged(offset, reach)
    return np.asarray(followed.clip(0, 1), dtype=np.float32)


def _averaged(values: NDArray[Any], reach: int) -> NDArray[Any]:
    """Average over square windows, which are cut off at the picture's border."""
    for axis in (0, 1):
        count = values.shape[axis]
        sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
        last = np.minimum(np.arange(count) + reach + 1, count)
        first = np.maximum(np.arange(count) - reach, 0)
        sizes = (last - first).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        values = (sums.take(last, axis) - sums.take(first, axis)) / sizes
    return values


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
