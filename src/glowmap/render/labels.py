"""A class for every pixel, painted over the picture."""

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
# turning by the golden angle puts each new hue into the widest gap that the earlier ones left; a lightness that walks
# by another irrational step keeps the hues that come near each other after 21 or 55 classes apart
_GOLDEN_ANGLE = 180 * (3 - 5**0.5)
_LIGHTNESS_STEP = 3**0.5 - 1
_INK = (24, 24, 28)  # around the white letters of a name, over whatever colour


@cache
def label_colour(index: int) -> Colour:
    """Return the colour of a class, the same for an index everywhere and far from its neighbours'."""
    if index < 0:
        raise OutputError(
            f"a class index counts from 0, and {index} does not; give unlabelled pixels a class of their own"
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
    """Tint each pixel in its class's colour and line the borders between classes.

    ``labels`` is ``rows x columns`` of class indices from 0, at any resolution. With ``names``, a class is named
    wherever its name fits inside it. The class ``background`` is left unpainted. OutputError for a negative class.
    """
    check_opacity(opacity)
    classes = _at_size(labels, rows=picture.height, columns=picture.width)
    present = np.unique(classes)
    place = np.searchsorted(present, classes)
    palette = np.array([label_colour(int(index)) for index in present], dtype=np.uint8)
    cover = np.where(present == background, 0, round(255 * opacity)).astype(np.uint8)[place]
    # a border of full colour on either side stays crisp whatever the picture shows there
    cover[_borders(place, reach=_line(picture)) & (cover > 0)] = 255
    painted = Image.composite(Image.fromarray(palette[place]), picture.convert("RGB"), Image.fromarray(cover))
    for number, index in enumerate(present.tolist()):
        if names is not None and index < len(names) and index != background:
            _write_inside(painted, place == number, printable(names[index]))
    return painted


def label_legend(labels: Labels, names: Sequence[str] | None = None, *, background: int | None = None) -> Legend:
    """List the classes of a label map with their colours, the largest first, as a tile's legend wants them."""
    present, counts = np.unique(_checked(labels), return_counts=True)
    ordered = [int(index) for index in present[np.argsort(-counts, kind="stable")] if index != background]
    return tuple((label_colour(index), _name(index, names)) for index in ordered)


def _name(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None and index < len(names) else f"class {index}"


def _checked(labels: Labels) -> Labels:
    if labels.ndim != 2 or not labels.size:
        raise OutputError(
            f"a label map has rows and columns, and this one has shape {labels.shape}; pass one at a time"
        )
    if labels.min() < 0:
        raise OutputError(
            f"class indices count from 0, and this label map holds {labels.min()}; give unlabelled pixels a class"
        )
    return labels


def _at_size(labels: Labels, *, rows: int, columns: int) -> Labels:
    classes = _checked(labels)
    if classes.shape == (rows, columns):
        return classes
    from_rows = (np.arange(rows) * 2 + 1) * classes.shape[0] // (2 * rows)
    from_columns = (np.arange(columns) * 2 + 1) * classes.shape[1] // (2 * columns)
    return np.asarray(classes[from_rows[:, None], from_columns])


def _line(picture: Image.Image) -> int:
    # a figure shows a large picture reduced, where a line of one pixel would be lost
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
    step = max(1, size // 6)  # the place of a name need not be known to the pixel
    rows, columns = round(size * 1.5), round(font(size).getlength(name)) + size
    centre = _roomiest(region[::step, ::step], rows=ceil(rows / step), columns=ceil(columns / step))
    if centre is not None:
        at = (centre[0] * step, centre[1] * step)
        ImageDraw.Draw(painted).text(
            at, name, fill=(255, 255, 255), font=font(size), anchor="mm", stroke_width=size // 9, stroke_fill=_INK
        )


def _roomiest(region: NDArray[np.bool_], *, rows: int, columns: int) -> tuple[float, float] | None:
    """Return where (x, y) a box lies inside a region with the widest margin, or None where it does not fit."""
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
    if rows >= sums.shape[0] or columns >= sums.shape[1]:
        return np.empty((0, 2), dtype=np.intp)
    inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    return np.argwhere(inside == rows * columns)
