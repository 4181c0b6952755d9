"""What a detector found, as boxes in their classes' colours, each with a label that can be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, floor, pi, sin
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.render.blocks import Size, strokes
from glowmap.render.colormap import oklab_from_srgb
from glowmap.render.labels import label_colour
from glowmap.render.style import Colour, Lettering

Corners = tuple[float, float, float, float]  # left, top, right, bottom in shares of the picture
# a point (across, down) or a box, in shares of the picture, or a region that covers it: rows x columns, true inside
Shape: TypeAlias = tuple[float, float] | Corners | NDArray[np.bool_]
Path = list[tuple[float, float]]
LIGHT: Colour = (255, 255, 255)
DARK: Colour = (16, 18, 24)
_LINES = ((3.0, DARK), (1.3, LIGHT))  # their thickness, at scale 1
_BORDER = 0.8  # times as thick are those around a region, which turn at every cell
_CELL = 8  # pixels from which on a region's cells are shown as they are
_RADIUS, _OPEN, _ARM = 8.0, 2.5, 8.0  # of the circle around a point, and from where to where its cross is drawn


def outlined(picture: Image.Image, shapes: Sequence[Shape], scale: int | float | None = None) -> Image.Image:
    """Draw the outlines of shapes over a copy of a picture: a cross in a circle, a box, a region's border.

    ``scale`` is that of the lines; None is for a picture that stands by itself, whose lines grow with it.
    """
    drawn = picture.convert("RGB").copy()
    unit = line_scale(drawn.size) if scale is None else scale
    regions = [_smoothed(shape, drawn.size) for shape in shapes if isinstance(shape, np.ndarray)]
    simple = [shape for shape in shapes if not isinstance(shape, np.ndarray)]
    for thickness, ink in _LINES:
        thin = thickness * _BORDER * unit
        borders = [path for region in regions for path in _border(region, drawn.size, thin / 2)]
        paths = [path for shape in simple for path in _paths(shape, drawn.size, unit)]
        for lines, width in ((borders, thin), (paths, thickness * unit)):
            if lines:
                drawn.paste(ink, (0, 0), strokes(lines, drawn.size, width))
    return drawn


def line_scale(size: Size) -> float:
    """Choose how thick lines are on a picture that may be shown reduced."""
    return max(1.0, max(size) / 500)


def rectangle(corners: Corners, size: Size, within: int | float) -> Path:
    """Lead a path around a box along the middle of pixels, kept so far from the picture's edges that all of its line is seen."""
    (left, right), (top, bottom) = (
        sorted(min(max(floor(share * pixels) + 0.5, within), pixels - within) for share in pair)
        for pair, pixels in zip((corners[::2], corners[1::2]), size, strict=True)
    )
    around = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return [*around, *around[:2]]  # on past its beginning, so that the last corner is as round as the others


def _paths(shape: tuple[float, float] | Corners, size: Size, unit: int | float) -> list[Path]:
    if len(shape) == 4:
        return [rectangle(shape, size, 1.8 * unit)]
    across, down = shape[0] * size[0], shape[1] * size[1]
    turns = [(cos(step * pi / 24), sin(step * pi / 24)) for step in range(50)]
    circle = [(across + x * _RADIUS * unit, down + y * _RADIUS * unit) for x, y in turns]
    arms = [
        [(across + x * reach * unit, down + y * reach * unit) for reach in (_OPEN, _ARM)] for x, y in turns[0:48:12]
    ]
    return [circle, *arms]


def _smoothed(region: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Round the stairs of a region's small cells; straight borders stay where they are, and large cells have their corners."""
    ratio = min(pixels / count for pixels, count in zip(size, region.shape[::-1], strict=True))
    if not 1 < ratio < _CELL:
        return region
    enlarged = Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(enlarged) >= 128


def _border(region: NDArray[np.bool_], size: Size, half: float) -> list[Path]:
    """Follow the border between the cells inside and outside: straight pieces, each longer by half a line so that they meet."""
    paths = []
    for flat in (False, True):
        cells = np.pad(region.T if flat else region, ((1, 1), (0, 0)))
        steps = np.pad(cells[1:] != cells[:-1], ((0, 0), (1, 1))).astype(np.int8)
        turns = np.diff(steps, axis=1)
        starts, ends = np.argwhere(turns == 1), np.argwhere(turns == -1)
        along, beyond = (pixels / count for pixels, count in zip(size, region.shape[::-1], strict=True))
        if flat:
            along, beyond = beyond, along
        for (line, start), (_, end) in zip(starts.tolist(), ends.tolist(), strict=True):
            piece = [(start * along - half, line * beyond), (end * along + half, line * beyond)]
            paths.append([(down, across) for across, down in piece] if flat else piece)
    return paths


_LETTERS, _BOLD = Lettering(12), Lettering(12, bold=True)
_BOX_LINES = ((3.4, DARK), (2.0, None))  # their thickness at scale 1, and their ink where it is not the class's colour
_STRONG = ((6.0, DARK), (4.8, LIGHT), (2.8, None))
_BRIGHT = 0.66  # lightness from which dark letters are read better than white ones
Area = tuple[int, int, int, int]


@dataclass(frozen=True)
class LabelledBox:
    """A box in shares of the picture (left, top, right, bottom), its label, its class, and whether it is asked about."""

    corners: Corners
    label: str
    category: int
    asked: bool = False


def paint_boxes(picture: Image.Image, boxes: Sequence[LabelledBox], scale: int | float | None = None) -> Image.Image:
    """Draw boxes over a copy of a picture, the first on top, and those that are asked about stronger and above all others.

    Labels stand at the corners of their boxes, where they cover no other label if there is such a place. ``scale`` is that of
    lines and letters; None is for a picture that stands by itself, in which they grow with it.
    """
    drawn = picture.convert("RGB").copy()
    unit = line_scale(drawn.size) if scale is None else scale
    ordered = sorted(boxes, key=lambda one: not one.asked)  # stable: the first come first
    for one in reversed(ordered):
        colour = label_colour(one.category)
        lines = _STRONG if one.asked else _BOX_LINES
        path = rectangle(one.corners, drawn.size, lines[0][0] / 2 * unit)
        for thickness, ink in lines:
            drawn.paste(ink or colour, (0, 0), strokes([path], drawn.size, thickness * unit))
    taken: list[Area] = []
    for one in ordered:
        taken.append(_labelled(drawn, one, taken, unit))
    return drawn


def _labelled(drawn: Image.Image, box: LabelledBox, taken: Sequence[Area], unit: int | float) -> Area:
    """Write a box's label where it covers least of the labels that stand already, and say where that is."""
    lettering = _BOLD if box.asked else _LETTERS
    lettering = Lettering(max(1, round(lettering.size * unit)), LIGHT, lettering.bold)
    colour, edge = label_colour(box.category), round(unit * (2 if box.asked else 1))
    text = lettering.shorten(box.label, drawn.width - 2 * round(4 * unit))
    size = lettering.width(text) + 2 * round(4 * unit), lettering.leading + 2 * edge
    area = min(_places(drawn.size, box.corners, size), key=lambda place: sum(_common(place, other) for other in taken))
    drawn.paste(LIGHT if box.asked else DARK, area)
    inner = area[0] + edge, area[1] + edge, area[2] - edge, area[3] - edge
    drawn.paste(colour, inner)
    ink = DARK if _lightness(colour) >= _BRIGHT else LIGHT
    Lettering(lettering.size, ink, lettering.bold).draw(drawn, area[0] + round(4 * unit), inner[1], text)
    return area


def _places(size: tuple[int, int], corners: Corners, label: tuple[int, int]) -> list[Area]:
    """List where a label may stand, the best first: above its box, at its top, below, at its bottom, further down."""
    left, top, right, bottom = (round(share * pixels) for share, pixels in zip(corners, size * 2, strict=True))
    downs = [top - label[1], top, bottom, bottom - label[1], *range(top + label[1], bottom - label[1], label[1])]
    places = [(across, down) for down in downs for across in (left, right - label[0])]
    kept = [place for place in places if 0 <= place[1] <= size[1] - label[1]] or places
    inside = [(max(0, min(across, size[0] - label[0])), max(0, min(down, size[1] - label[1]))) for across, down in kept]
    return [(across, down, across + label[0], down + label[1]) for across, down in inside]


def _common(one: Area, other: Area) -> int:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)


def _lightness(colour: Colour) -> float:
    return float(oklab_from_srgb(np.array(colour, dtype=np.uint8))[0])
