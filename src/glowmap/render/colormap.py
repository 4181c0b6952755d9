"""Colormaps: tables of 256 sRGB colours, computed here in OKLab."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glowmap.errors import OutputError
from glowmap.registry import Registry

Floats = NDArray[np.float64]
_CONES = np.array(  # linear RGB to cone responses, by OKLab's definition (Ottosson 2020)
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OPPONENTS = np.array(  # the cube roots of cone responses to lightness and two opponent axes
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab_from_srgb(colours: NDArray[np.uint8]) -> Floats:
    """Convert ``... x 3`` sRGB bytes to ``... x 3`` OKLab coordinates."""
    encoded = colours / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _CONES.T) @ _OPPONENTS.T)


def srgb_from_oklab(colours: Floats) -> NDArray[np.uint8]:
    """Convert ``... x 3`` OKLab coordinates to sRGB bytes. Colours outside the gamut lose chroma until they fit."""
    linear = _linear(_in_gamut(colours)).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), dtype=np.uint8)


def oklab_from_polar(lightness: float, chroma: float, hue: float) -> Floats:
    """Return the OKLab coordinates of a lightness in [0, 1], a chroma (0 is grey, 0.3 is vivid) and a hue in degrees."""
    angle = np.deg2rad(hue)
    return np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])


def _linear(colours: Floats) -> Floats:
    return np.asarray((colours @ np.linalg.inv(_OPPONENTS).T) ** 3 @ np.linalg.inv(_CONES).T)


def _in_gamut(colours: Floats) -> Floats:
    """Reduce chroma by bisection until sRGB can show the colours."""
    # less chroma keeps lightness and hue, which carry the meaning; clipping red, green and blue would change both
    low, high = np.zeros(colours.shape[:-1]), np.ones(colours.shape[:-1])
    for _ in range(24):
        factor = np.where(_is_in_gamut(_with_chroma(colours, high)), high, (low + high) / 2)
        fits = _is_in_gamut(_with_chroma(colours, factor))
        low, high = np.where(fits, factor, low), np.where(fits, high, factor)
    return _with_chroma(colours, np.where(_is_in_gamut(_with_chroma(colours, high)), high, low))


def _with_chroma(colours: Floats, factor: Floats) -> Floats:
    """Multiply the chroma of each colour by its factor."""
    return np.concatenate([colours[..., :1], colours[..., 1:] * factor[..., None]], axis=-1)


def _is_in_gamut(colours: Floats) -> NDArray[np.bool_]:
    linear = _linear(colours)
    return np.asarray(((linear >= -1e-6) & (linear <= 1 + 1e-6)).all(axis=-1))


Table = NDArray[np.uint8]
COLORMAPS: Registry[Table] = Registry("colormap", OutputError)
DIVERGING = frozenset({"signed"})  # colormaps whose middle, not whose start, stands for no evidence
# bilinear resizing in single precision may leave [0, 1] by this much
_ROUNDING = 1e-5


def colorize(values: NDArray[np.floating[Any]], colormap: str = "glow") -> NDArray[np.uint8]:
    """Return the colours of ``rows x columns`` values as ``rows x columns x 3`` bytes. Raises OutputError outside [0, 1]."""
    table = COLORMAPS[colormap]
    # rint maps 0 and 1 to the first and last entry
    return np.take(table, np.rint(unit(values) * 255).astype(np.uint8), axis=0)


def unit(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return the values in single precision, clipped to [0, 1]. Raises OutputError for NaN and values outside."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        contents = "NaN" if np.isnan(low) else f"values from {low:.4g} to {high:.4g}"
        raise OutputError(f"a map to colour lies in [0, 1], and this one holds {contents}; normalise it first")
    return values.astype(np.float32).clip(0, 1)


def _glow() -> Table:
    """Ink, wine, scarlet, orange and straw, with lightness that rises linearly, so that it prints well in grey."""
    return _through((0.14, 0.05, 310.0), (0.36, 0.15, 5.0), (0.58, 0.21, 32.0), (0.77, 0.17, 64.0), (0.95, 0.13, 102.0))


def _signed() -> Table:
    """Blue for evidence against, red for evidence in favour, and near white for none."""
    against = _through((0.38, 0.15, 262.0), (0.62, 0.15, 254.0), (0.96, 0.0, 0.0), entries=128)
    in_favour = _through((0.96, 0.0, 0.0), (0.62, 0.19, 28.0), (0.38, 0.15, 26.0), entries=128)
    return np.concatenate([against, in_favour])


def _gray() -> Table:
    """Black to white."""
    return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def _jet() -> Table:
    """Rainbow of older papers, to compare with their figures. Its bands show edges that the map does not have."""
    position = np.linspace(0, 1, 256)[:, None]
    ramps = (1.5 - np.abs(4 * position - np.array([3.0, 2.0, 1.0]))).clip(0, 1)
    return np.asarray(np.rint(ramps * 255), dtype=np.uint8)


def _through(*anchors: tuple[float, float, float], entries: int = 256) -> Table:
    """Interpolate between anchors (lightness, chroma, hue) so that lightness is linear."""
    corners = np.stack([oklab_from_polar(*anchor) for anchor in anchors])
    lightness = corners[:, 0]
    positions = (lightness - lightness[0]) / (lightness[-1] - lightness[0])
    steps = np.linspace(0, 1, entries)
    return srgb_from_oklab(np.stack([_smoothed(np.interp(steps, positions, axis)) for axis in corners.T], axis=-1))


def _smoothed(axis: Floats) -> Floats:
    # a corner in the path of the colours would show as a line in a smooth map; odd reflection keeps the two ends
    reach = 20
    padded = np.pad(axis, reach, mode="reflect", reflect_type="odd")
    return np.convolve(padded, np.full(2 * reach + 1, 1 / (2 * reach + 1)), mode="valid")


COLORMAPS.register("glow", _glow())
COLORMAPS.register("jet", _jet())
COLORMAPS.register("gray", _gray())
COLORMAPS.register("signed", _signed())
for _table in COLORMAPS.values():
    _table.setflags(write=False)
