"""Outlines of points, boxes and regions, and the labelled boxes of detections."""

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
_LINES = ((3.0, DARK), (1.3, LIGHT))  # thickness at scale 1, and ink
_BORDER = 0.8  # the thickness of a region's border, which turns at every cell, relative to other lines
_CELL = 8  # pixels: cells of a region from this size on keep their corners
_RADIUS, _GAP, _ARM = 8.0, 2.5, 8.0  # of the circle around a point, and where the arms of its cross begin and end


def outlined(picture: Image.Image, shapes: Sequence[Shape], scale: int | float | None = None) -> Image.Image:
    """Draw the outlines of shapes over a copy of a picture: a cross in a circle, a box, a region's border.

    ``scale`` is that of the lines. None is for a picture outside a figure, where lines grow with the picture.
    """
    drawn = picture.convert("RGB").copy()
    unit = line_scale(drawn.size) if scale is None else scale
    regions = [_smoothed(shape, drawn.size) for shape in shapes if isinstance(shape, np.ndarray)]
    points_and_boxes = [shape for shape in shapes if not isinstance(shape, np.ndarray)]
    for thickness, ink in _LINES:
        thin = thickness * _BORDER * unit
        borders = [path for region in regions for path in _border(region, drawn.size, thin / 2)]
        paths = [path for shape in points_and_boxes for path in _paths(shape, drawn.size, unit)]
        for lines, width in ((borders, thin), (paths, thickness * unit)):
            if lines:
                drawn.paste(ink, (0, 0), strokes(lines, drawn.size, width))
    return drawn


def line_scale(size: Size) -> float:
    """Return the scale of lines on a picture that may be shown reduced: 1 up to 500 pixels, then growing with the size."""
    return max(1.0, max(size) / 500)


def rectangle(corners: Corners, size: Size, margin: int | float) -> Path:
    """Return a path around a box along the middle of pixels, at least ``margin`` pixels inside the picture's edges."""
    (left, right), (top, bottom) = (
        sorted(min(max(floor(share * pixels) + 0.5, margin), pixels - margin) for share in pair)
        for pair, pixels in zip((corners[::2], corners[1::2]), size, strict=True)
    )
    around = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return [*around, *around[:2]]  # on past its start, so that the last corner is as round as the others


def _paths(shape: tuple[float, float] | Corners, size: Size, unit: int | float) -> list[Path]:
    """Return the lines of a box, or of the circle and cross of a point."""
    if len(shape) == 4:
        return [rectangle(shape, size, 1.8 * unit)]
    across, down = shape[0] * size[0], shape[1] * size[1]
    turns = [(cos(step * pi / 24), sin(step * pi / 24)) for step in range(50)]
    circle = [(across + x * _RADIUS * unit, down + y * _RADIUS * unit) for x, y in turns]
    arms = [[(across + x * reach * unit, down + y * reach * unit) for reach in (_GAP, _ARM)] for x, y in turns[0:48:12]]
    return [circle, *arms]


def _smoothed(region: NDArray[np.bool_], size: Size) -> NDArray[np.bool_]:
    """Smooth the steps between a region's small cells. Straight borders stay in place, and large cells keep their corners."""
    ratio = min(pixels / count for pixels, count in zip(size, region.shape[::-1], strict=True))
    if not 1 < ratio < _CELL:
        return region
    enlarged = Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(enlarged) >= 128


def _border(region: NDArray[np.bool_], size: Size, half: float) -> list[Path]:
    """Return the border between cells inside and outside as straight lines, lengthened by ``half`` so that they meet."""
    paths = []
    for is_flat in (False, True):
        cells = np.pad(region.T if is_flat else region, ((1, 1), (0, 0)))
        steps = np.pad(cells[1:] != cells[:-1], ((0, 0), (1, 1))).astype(np.int8)
        turns = np.diff(steps, axis=1)
        starts, ends = np.argwhere(turns == 1), np.argwhere(turns == -1)
        along, beyond = (pixels / count for pixels, count in zip(size, region.shape[::-1], strict=True))
        if is_flat:
            along, beyond = beyond, along
        for (line, start), (_, end) in zip(starts.tolist(), ends.tolist(), strict=True):
            piece = [(start * along - half, line * beyond), (end * along + half, line * beyond)]
            paths.append([(down, across) for across, down in piece] if is_flat else piece)
    return paths


_LETTERS, _BOLD = Lettering(12), Lettering(12, bold=True)
_BOX_LINES = ((3.4, DARK), (2.0, None))  # thickness at scale 1, and ink; None is the class's colour
_STRONG_LINES = ((6.0, DARK), (4.8, LIGHT), (2.8, None))
_BRIGHT = 0.66  # lightness from which dark letters are easier to read than white ones
Area = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class LabelledBox:
    """A box in shares of the picture (left, top, right, bottom), its label and class, and whether it is drawn stronger."""

    corners: Corners
    label: str
    category: int
    is_strong: bool = False


def paint_boxes(picture: Image.Image, boxes: Sequence[LabelledBox], scale: int | float | None = None) -> Image.Image:
    """Draw boxes over a copy of a picture, the first on top, and strong ones above all others.

    Labels stand at the corners of their boxes, where possible without covering another label. ``scale`` is that of lines and
    letters. None is for a picture outside a figure, where they grow with the picture.
    """
    drawn = picture.convert("RGB").copy()
    unit = line_scale(drawn.size) if scale is None else scale
    ordered = sorted(boxes, key=lambda box: not box.is_strong)  # stable: the order within each kind stays
    for box in reversed(ordered):
        colour = label_colour(box.category)
        lines = _STRONG_LINES if box.is_strong else _BOX_LINES
        path = rectangle(box.corners, drawn.size, lines[0][0] / 2 * unit)
        for thickness, ink in lines:
            drawn.paste(ink or colour, (0, 0), strokes([path], drawn.size, thickness * unit))
    occupied: list[Area] = []
    for box in ordered:
        occupied.append(_draw_label(drawn, box, occupied, unit))
    return drawn


def _draw_label(drawn: Image.Image, box: LabelledBox, occupied: Sequence[Area], unit: int | float) -> Area:
    """Draw a box's label where it covers least of the ``occupied`` areas, and return its area."""
    lettering = _BOLD if box.is_strong else _LETTERS
    lettering = Lettering(max(1, round(lettering.size * unit)), LIGHT, lettering.bold)
    colour, edge = label_colour(box.category), round(unit * (2 if box.is_strong else 1))
    text = lettering.shorten(box.label, drawn.width - 2 * round(4 * unit))
    size = lettering.width(text) + 2 * round(4 * unit), lettering.leading + 2 * edge
    candidates = _label_areas(drawn.size, box.corners, size)
    area = min(candidates, key=lambda candidate: sum(_overlap(candidate, label) for label in occupied))
    drawn.paste(LIGHT if box.is_strong else DARK, area)
    inner = area[0] + edge, area[1] + edge, area[2] - edge, area[3] - edge
    drawn.paste(colour, inner)
    ink = DARK if _lightness(colour) >= _BRIGHT else LIGHT
    Lettering(lettering.size, ink, lettering.bold).draw(drawn, area[0] + round(4 * unit), inner[1], text)
    return area


def _label_areas(size: Size, corners: Corners, label: Size) -> list[Area]:
    """List the areas for a box's label, the best first: above the box, at its top, below, at its bottom, further down."""
    left, top, right, bottom = (round(share * pixels) for share, pixels in zip(corners, size * 2, strict=True))
    downs = [top - label[1], top, bottom, bottom - label[1], *range(top + label[1], bottom - label[1], label[1])]
    starts = [(across, down) for down in downs for across in (left, right - label[0])]
    visible = [start for start in starts if 0 <= start[1] <= size[1] - label[1]] or starts
    inside = [(max(0, min(x, size[0] - label[0])), max(0, min(y, size[1] - label[1]))) for x, y in visible]
    return [(across, down, across + label[0], down + label[1]) for across, down in inside]


def _overlap(first: Area, second: Area) -> int:
    """Return the number of pixels that two areas have in common."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    return max(across, 0) * max(down, 0)


def _lightness(colour: Colour) -> float:
    return float(oklab_from_srgb(np.array(colour, dtype=np.uint8))[0])
