"""Frames of a clip and slices of a volume, side by side, with their heat and that of all the others."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glowmap.render.blocks import beside, enlarged, heat_line, lines_of_text, sheet, stack, stroke
from glowmap.render.overlays import check_opacity, overlay
from glowmap.render.places import hottest, hottest_cell
from glowmap.render.style import HEADING, HOTTEST, INK, LEADER, NUMBERS, Colour, Look

MOST_IN_A_STRIP = 6  # places that are chosen where nobody names them
CROSS: Colour = (120, 225, 255)  # cold among glowing colours, and bright on a scan's black
_MOST_IN_A_LINE, _FEWEST = 8, 4  # a line has room for four at least, so that a single frame does not fill it
_GAP = 8
_TALLEST = 1.5  # times the width of a frame
_PLANES_TALLEST = 388  # pixels: three planes of a cube fill the figure's width
_TINY = 32  # pixels: looked at pixel by pixel, as a picture is at up to three times that size
Voxels = NDArray[np.uint8]  # frames (slices) x rows x columns x colours; one colour is grey
Heat = NDArray[np.floating[Any]]  # frames x rows x columns in [0, 1]
Paint = Callable[[int, Image.Image], Image.Image]


def clip(values: Voxels, heat: Heat, places: Sequence[int], look: Look, word: str = "frame") -> Image.Image:
    """Draw some frames under their heat, and beneath them a bar of the strongest heat in every frame.

    A thin line leads from each frame to its place in the bar, and the hottest one says that it is.
    """
    check_opacity(look.opacity)
    hot = hottest(heat.max((1, 2)), look.cold)

    def paint(place: int, frame: Image.Image) -> Image.Image:
        return overlay(frame, heat[place], colormap=look.colormap, opacity=look.opacity)

    drawn = strip(values, places, look, word=word, paint=paint, hot=hot)
    return stack([drawn, _leaders(places, len(values), hot, drawn.width, look), _bar(heat, word, drawn.width, look)])


def volume(values: Voxels, heat: Heat, places: Sequence[int], look: Look) -> Image.Image:
    """Draw the three planes through the hottest cell, which cross hairs mark, above some slices under their heat."""
    return stack([_planes(values, heat, look), clip(values, heat, places, look, "slice")], 14 * look.scale)


def strip(
    values: Voxels, places: Sequence[int], look: Look, *, word: str, paint: Paint | None = None, hot: int | None = None
) -> Image.Image:
    """Draw some frames or slices in order, each under its number, counted from 1; ``paint`` may lay something over them."""
    each = _in_a_line(places)
    gap = _GAP * look.scale
    room = (look.width + gap) // max(each, _FEWEST) - gap
    rows, columns = values.shape[1:3]
    ratio = min(room / columns, _TALLEST * room / rows)
    blocks = []
    for place in places:
        frame = enlarged(_picture(values[place]), ratio, _TINY)
        heading = f"{word} {place + 1} of {len(values)}"
        blocks.append(_headed(paint(place, frame) if paint else frame, heading, look, hot=place == hot))
    return stack([beside(blocks[start : start + each], gap) for start in range(0, len(blocks), each)], gap)


def _in_a_line(places: Sequence[int]) -> int:
    return ceil(len(places) / ceil(len(places) / _MOST_IN_A_LINE))


def _picture(values: Voxels) -> Image.Image:
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).convert("RGB")


def _headed(picture: Image.Image, heading: str, look: Look, *, hot: bool = False) -> Image.Image:
    lettering = (HOTTEST if hot else HEADING).scaled(look.scale)
    said = f"{heading} · hottest"
    shown = said if hot and lettering.width(said) <= picture.width else lettering.shorten(heading, picture.width)
    return stack([lines_of_text([shown], lettering, picture.width), picture], look.scale)


def _leaders(places: Sequence[int], count: int, hot: int | None, width: int, look: Look) -> Image.Image:
    """Lead from the middle of each frame to its place in the bar; of frames in several lines mark the places only."""
    each = _in_a_line(places)
    pitch = (width + _GAP * look.scale) / each
    page = sheet(width, 16 * look.scale)
    for number, place in enumerate(places):
        above, below = (number + 0.5) * pitch - _GAP * look.scale / 2, (place + 0.5) / count * width
        path = [(above, 0.0), (above, page.height * 0.2), (below, page.height * 0.7), (below, float(page.height))]
        ink, thick = (INK, 1.8) if place == hot else (LEADER, 1.0)
        page.paste(ink, (0, 0), stroke(path if len(places) == each else path[2:], page.size, thick * look.scale))
    return page


def _bar(heat: Heat, word: str, width: int, look: Look) -> Image.Image:
    """Colour each frame's strongest heat, for or against, from the first frame to the last."""
    highest, lowest = heat.max((1, 2)), heat.min((1, 2))
    strongest = np.where(highest - look.cold >= look.cold - lowest, highest, lowest)
    numbers = NUMBERS.scaled(look.scale)
    names = sheet(width, numbers.leading)
    said = (f"{word} 1", f"strongest heat in each {word}", f"{word} {len(heat)}")
    if sum(numbers.width(text) for text in said) < width - 2 * numbers.leading:
        for text, share in zip(said, (0.0, 0.5, 1.0), strict=True):
            numbers.draw(names, round(share * (width - numbers.width(text))), 0, text)
    return stack([heat_line(strongest, look.colormap, (width, 10 * look.scale)), names], 2 * look.scale)


def _planes(values: Voxels, heat: Heat, look: Look) -> Image.Image:
    """Cut a volume along its three axes at its hottest cell, or in the middle where there is none."""
    cell = hottest_cell(heat, look.cold)
    depth, rows, columns = heat.shape
    middle = cell or (depth // 2, rows // 2, columns // 2)
    gap = _GAP * look.scale
    # two pixels less, as each plane's width is rounded
    ratio = min((look.width - 2 * gap - 2) / (2 * columns + rows), _PLANES_TALLEST * look.scale / max(rows, depth))
    blocks = []
    for axis, word in enumerate(("slice", "row", "column")):
        picture = enlarged(_picture(np.take(values, middle[axis], axis)), ratio, _TINY)
        drawn = overlay(picture, np.take(heat, middle[axis], axis), colormap=look.colormap, opacity=look.opacity)
        down, across = (at for other, at in enumerate(middle) if other != axis)
        if cell:
            sides = heat.shape[:axis] + heat.shape[axis + 1 :]
            at = (across + 0.5) / sides[1] * drawn.width, (down + 0.5) / sides[0] * drawn.height
            _cross(drawn, at, look.scale)
        blocks.append(
            _headed(drawn, f"{word} {middle[axis] + 1} of {heat.shape[axis]}", look, hot=cell is not None and not axis)
        )
    return beside(blocks, gap)


def _cross(picture: Image.Image, at: tuple[float, float], scale: int) -> None:
    """Draw hair lines through a place, left open around it so that it can be seen."""
    across, down = (int(place) for place in at)
    pen, free = ImageDraw.Draw(picture), 14 * scale
    lines = [(start, down, end, down) for start, end in ((0, across - free), (across + free, picture.width - 1))]
    lines += [(across, start, across, end) for start, end in ((0, down - free), (down + free, picture.height - 1))]
    for left, top, right, bottom in lines:
        if left < right or top < bottom:
            pen.line((left, top, right, bottom), fill=CROSS, width=scale)
