"""What a detector found, as boxes in their classes' colours, each with a label that can be read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from glowmap.render.blocks import strokes
from glowmap.render.labels import label_colour
from glowmap.render.marks import DARK, LIGHT, Corners, line_scale, rectangle
from glowmap.render.oklab import oklab_from_srgb
from glowmap.render.text import Colour, Lettering

_LETTERS, _BOLD = Lettering(12), Lettering(12, bold=True)
_LINES = ((3.4, DARK), (2.0, None))  # their thickness at scale 1, and their ink where it is not the class's colour
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
        lines = _STRONG if one.asked else _LINES
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
