"""A coarse map brought to the edges of its picture: the guided filter of He, Sun and Tang (ECCV 2010, eq. 14 to 16)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.render.overlay import resize_heat

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
