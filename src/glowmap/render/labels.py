"""Label maps: the class of every pixel, painted over the picture."""

from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glowmap.errors import OutputError
from glowmap.render.colormap import oklab_from_polar, srgb_from_oklab
from glowmap.render.overlays import check_opacity
from glowmap.render.style import Colour, font, printable

Labels = NDArray[np.integer[Any]]
Legend = tuple[tuple[Colour, str], ...]
# The golden angle puts each new hue into the widest gap between earlier hues. Lightness moves by another irrational step,
# which separates the classes whose hues come near each other, 21 or 55 classes later.
_GOLDEN_ANGLE = 180 * (3 - 5**0.5)
_LIGHTNESS_STEP = 3**0.5 - 1
_INK = (24, 24, 28)  # around the white letters of a name, for contrast on any colour


@cache
def label_colour(index: int) -> Colour:
    """Return the colour of a class, the same in every figure and far from those of neighbouring indices."""
    if index < 0:
        raise OutputError(
            f"class indices count from 0, and this one is {index}; give unlabelled pixels a class of their own"
        )
    lightness = 0.48 + 0.38 * ((0.5 + index * _LIGHTNESS_STEP) % 1)
    red, green, blue = srgb_from_oklab(oklab_from_polar(lightness, 0.19, 260 + index * _GOLDEN_ANGLE)).tolist()
    return red, green, blue


def paint_labels(
    picture: Image.Image,
    labels: Labels,
    names: Sequence[str] | None = None,
    *,
    background: int | None = None,
    opacity: float = 0.55,
) -> Image.Image:
    """Tint each pixel in its class's colour and draw the borders between classes.

    ``labels`` is ``rows x columns`` of class indices from 0, at any resolution. With ``names``, a class is named where its
    name fits inside it. The class ``background`` is not painted. Raises OutputError for a negative class.
    """
    check_opacity(opacity)
    classes = _at_size(labels, rows=picture.height, columns=picture.width)
    present = np.unique(classes)
    position = np.searchsorted(present, classes)
    palette = np.array([label_colour(int(index)) for index in present], dtype=np.uint8)
    cover = np.where(present == background, 0, round(255 * opacity)).astype(np.uint8)[position]
    # borders in full colour stay clear on any picture
    cover[_borders(position, reach=_border_width(picture)) & (cover > 0)] = 255
    painted = Image.composite(Image.fromarray(palette[position]), picture.convert("RGB"), Image.fromarray(cover))
    for number, index in enumerate(present.tolist()):
        if names is not None and index < len(names) and index != background:
            _write_inside(painted, position == number, printable(names[index]))
    return painted


def label_legend(labels: Labels, names: Sequence[str] | None = None, *, background: int | None = None) -> Legend:
    """List the colours and names of the classes in a label map, the largest first, for the legend of a tile."""
    present, counts = np.unique(_checked(labels), return_counts=True)
    ordered = [int(index) for index in present[np.argsort(-counts, kind="stable")] if index != background]
    return tuple((label_colour(index), _name(index, names)) for index in ordered)


def _name(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None and index < len(names) else f"class {index}"


def _checked(labels: Labels) -> Labels:
    if labels.ndim != 2 or not labels.size:
        raise OutputError(
            f"a label map has rows and columns, and this one has shape {labels.shape}; pass one map at a time"
        )
    if labels.min() < 0:
        raise OutputError(
            f"class indices count from 0, and this label map holds {labels.min()}; give unlabelled pixels a class of their own"
        )
    return labels


def _at_size(labels: Labels, *, rows: int, columns: int) -> Labels:
    classes = _checked(labels)
    if classes.shape == (rows, columns):
        return classes
    from_rows = (np.arange(rows) * 2 + 1) * classes.shape[0] // (2 * rows)
    from_columns = (np.arange(columns) * 2 + 1) * classes.shape[1] // (2 * columns)
    return np.asarray(classes[from_rows[:, None], from_columns])


def _border_width(picture: Image.Image) -> int:
    # figures reduce large pictures, and a line of one pixel would vanish
    return max(1, round(max(picture.size) / 500))


def _borders(classes: NDArray[np.integer[Any]], reach: int) -> NDArray[np.bool_]:
    near = np.zeros(classes.shape, dtype=np.bool_)
    for step in range(1, reach + 1):
        down = classes[step:] != classes[:-step]
        across = classes[:, step:] != classes[:, :-step]
        near[step:] |= down
        near[:-step] |= down
        near[:, step:] |= across
        near[:, :-step] |= across
    return near


def _write_inside(painted: Image.Image, region: NDArray[np.bool_], name: str) -> None:
    size = max(12, round(max(painted.size) / 30))
    step = max(1, size // 6)  # the position of a name need not be exact to the pixel
    rows, columns = round(size * 1.5), round(font(size).getlength(name)) + size
    centre = _roomiest(region[::step, ::step], rows=ceil(rows / step), columns=ceil(columns / step))
    if centre is not None:
        position = (centre[0] * step, centre[1] * step)
        ImageDraw.Draw(painted).text(
            position, name, fill=(255, 255, 255), font=font(size), anchor="mm", stroke_width=size // 9, stroke_fill=_INK
        )


def _roomiest(region: NDArray[np.bool_], *, rows: int, columns: int) -> tuple[float, float] | None:
    """Return the centre (x, y) of a box inside a region with the widest margin, or None where the box does not fit."""
    sums = np.pad(region.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    best, low, high = None, -1, min(region.shape)
    while high - low > 1:
        margin = (low + high) // 2
        corners = _fitting(sums, rows + 2 * margin, columns + 2 * margin)
        if corners.size:
            middle = corners.mean(axis=0)
            top, left = corners[np.argmin(((corners - middle) ** 2).sum(axis=1))].tolist()
            best, low = (left + margin + columns / 2, top + margin + rows / 2), margin
        else:
            high = margin
    return best


def _fitting(sums: NDArray[np.int64], rows: int, columns: int) -> NDArray[np.intp]:
    """List the top left corners of all boxes that lie inside the region, by its summed-area table."""
    if rows >= sums.shape[0] or columns >= sums.shape[1]:
        return np.empty((0, 2), dtype=np.intp)
    inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    return np.argwhere(inside == rows * columns)
