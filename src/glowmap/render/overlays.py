"""Heat over a picture, and the guided filter that aligns a coarse map with the picture's edges."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from glowmap.errors import OutputError
from glowmap.render.colormap import COLORMAPS, DIVERGING, colorize, unit

_SMOOTHEST = 1e-3  # the filter's epsilon: colours in [0, 1] whose variance in a window is smaller are no edge


def follow_edges(
    heat: NDArray[np.floating[Any]], picture: Image.Image, radius: int | None = None
) -> NDArray[np.float32]:
    """Enlarge ``rows x columns`` of heat in [0, 1] to the picture, and align its borders with the picture's edges.

    The guided filter of He, Sun and Tang (ECCV 2010, eq. 14 to 16): within each window of ``radius`` pixels (by default half a
    cell of the heat), the heat becomes the linear function of the colours that fits it best. The map remains as coarse as it
    was; only its borders look finer.
    """
    enlarged = resize_heat(heat, rows=picture.height, columns=picture.width).astype(np.float64)
    cell = max(picture.height / heat.shape[0], picture.width / heat.shape[1])
    radius = max(1, round(cell / 2)) if radius is None else radius
    colours = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    mean_colour, mean_heat = _box_mean(colours, radius), _box_mean(enlarged, radius)
    covariance = _box_mean(colours * enlarged[..., None], radius) - mean_colour * mean_heat[..., None]
    products = _box_mean(colours[..., :, None] * colours[..., None, :], radius)
    variance = products - mean_colour[..., :, None] * mean_colour[..., None, :] + _SMOOTHEST * np.eye(3)
    slope = np.linalg.solve(variance, covariance[..., None])[..., 0]
    offset = mean_heat - (slope * mean_colour).sum(-1)
    filtered = (_box_mean(slope, radius) * colours).sum(-1) + _box_mean(offset, radius)
    return np.asarray(filtered.clip(0, 1), dtype=np.float32)


def _box_mean(values: NDArray[Any], radius: int) -> NDArray[Any]:
    """Average over square windows, which end at the picture's border."""
    for axis in (0, 1):
        count = values.shape[axis]
        sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
        last = np.minimum(np.arange(count) + radius + 1, count)
        first = np.maximum(np.arange(count) - radius, 0)
        sizes = (last - first).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        values = (sums.take(last, axis) - sums.take(first, axis)) / sizes
    return values


_GREYED = 0.3  # share of colour that the picture loses, so that it does not compete with the heat
_DIMMED = 0.35  # share of light that highlights lose; shadows lose none, so that dark photos stay readable
_FULL = 0.8  # heat from which on the map has its full opacity


def overlay(
    picture: Image.Image, heat: NDArray[np.floating[Any]], *, colormap: str = "glow", opacity: float = 0.75
) -> Image.Image:
    """Draw a heat map over its picture, more opaque where it is hotter.

    ``heat`` is ``rows x columns`` in [0, 1] at any resolution. Opacity 0 returns the picture, and 1 hides it where the heat
    is 1. With a diverging colormap 0.5 stands for no evidence. Raises OutputError for a map or opacity outside [0, 1].
    """
    check_opacity(opacity)
    COLORMAPS[colormap]  # raises an error for an unknown name
    values = resize_heat(heat, rows=picture.height, columns=picture.width)
    return glowing(_subdued(picture.convert("RGB"), opacity), values, colormap, opacity)


def glowing(ground: Image.Image, values: NDArray[np.float32], colormap: str, opacity: float) -> Image.Image:
    """Draw heat over a ground of the same size, more opaque where it is hotter."""
    cover = np.rint(np.float32(255 * opacity) * eased(values, colormap)).astype(np.uint8)
    return Image.composite(Image.fromarray(colorize(values, colormap)), ground, Image.fromarray(cover))


def resize_heat(heat: NDArray[np.floating[Any]], *, rows: int, columns: int) -> NDArray[np.float32]:
    """Resize a map in [0, 1] bilinearly, with pixel centres aligned. When reducing, each pixel averages all that it covers."""
    if heat.ndim != 2 or not heat.size:
        raise OutputError(
            f"a heat map has rows and columns, and this one has shape {heat.shape}; pass one map at a time"
        )
    values = unit(heat)
    if values.shape == (rows, columns):
        return values
    resized = Image.fromarray(values).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)


def eased(values: NDArray[np.float32], colormap: str) -> NDArray[np.float32]:
    """Return the cover of each value: 0 where it is cold, rising smoothly (smoothstep) to 1 at a strength of 0.8."""
    strength = np.abs(2 * values - 1) if colormap in DIVERGING else values
    reached = (strength / np.float32(_FULL)).clip(0, 1)
    return np.asarray(reached * reached * (3 - 2 * reached))


def _subdued(picture: Image.Image, opacity: float) -> Image.Image:
    """Take some colour from the picture and some light from its highlights."""
    grey = picture.convert("L")
    paler = Image.blend(grey.convert("RGB"), picture, 1 - _GREYED * opacity)
    light = grey.point([round(255 - _DIMMED * opacity * level) for level in range(256)])
    return ImageChops.multiply(paler, light.convert("RGB"))


def check_opacity(opacity: float) -> None:
    """Raise an OutputError unless the opacity lies in [0, 1]."""
    if not 0 <= opacity <= 1:
        raise OutputError(
            f"the opacity is {opacity}; give a number from 0 (the picture alone) to 1 (the colours alone)"
        )
