"""The OKLab colour space (Ottosson 2020), where equal steps look equal: lightness, then green-red, then blue-yellow."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OPPONENTS = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab_from_srgb(colours: NDArray[np.uint8]) -> Floats:
    """Turn ``... x 3`` sRGB bytes into ``... x 3`` OKLab coordinates."""
    encoded = colours / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ _CONES.T) @ _OPPONENTS.T)


def srgb_from_oklab(colours: Floats) -> NDArray[np.uint8]:
    """Turn ``... x 3`` OKLab coordinates into sRGB bytes; a colour no screen can show is greyed until one can."""
    linear = _linear(_shown(colours)).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), dtype=np.uint8)


def oklab_from_polar(lightness: float, chroma: float, hue: float) -> Floats:
    """Place a colour by lightness in [0, 1], chroma (0 is grey, 0.3 is vivid) and hue in degrees."""
    angle = np.deg2rad(hue)
    return np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)])


def _linear(colours: Floats) -> Floats:
    return np.asarray((colours @ np.linalg.inv(_OPPONENTS).T) ** 3 @ np.linalg.inv(_CONES).T)


def _shown(colours: Floats) -> Floats:
    # greying keeps lightness and hue, which carry the meaning; clipping red, green and blue would bend both
    low, high = np.zeros(colours.shape[:-1]), np.ones(colours.shape[:-1])
    for _ in range(24):
        kept = np.where(_fits(_greyed(colours, high)), high, (low + high) / 2)
        fits = _fits(_greyed(colours, kept))
        low, high = np.where(fits, kept, low), np.where(fits, high, kept)
    return _greyed(colours, np.where(_fits(_greyed(colours, high)), high, low))


def _greyed(colours: Floats, kept: Floats) -> Floats:
    return np.concatenate([colours[..., :1], colours[..., 1:] * kept[..., None]], axis=-1)


def _fits(colours: Floats) -> NDArray[np.bool_]:
    linear = _linear(colours)
    return np.asarray(((linear >= -1e-6) & (linear <= 1 + 1e-6)).all(axis=-1))
