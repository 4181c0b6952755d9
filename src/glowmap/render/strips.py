"""Frames of a clip and slices of a volume, side by side, with their heat and a bar of the heat in all frames."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glowmap.render.axis import hottest, hottest_cell
from glowmap.render.blocks import beside, enlarged, heat_line, lines_of_text, sheet, stack, stroke
from glowmap.render.overlays import check_opacity, overlay
from glowmap.render.style import FIGURE_WIDTH, HEADING, HOTTEST, INK, LEADER, NUMBERS, Colour, Style

MOST_IN_A_STRIP = 6  # frames that are drawn unless the caller chooses them
CROSS: Colour = (120, 225, 255)  # a cold colour beside glowing ones, and bright on a scan's black
_MOST_IN_A_ROW, _FEWEST = 8, 4  # a row has room for four at least, so that a single frame doesn't fill it
_GAP = 8
_TALLEST = 1.5  # times the width of a frame
_PLANES_TALLEST = 388  # pixels: three planes of a cube fill the figure's width
_TINY = 32  # pixels: frames up to this size are enlarged by whole pixels
Voxels = NDArray[np.uint8]  # frames (slices) x rows x columns x colours; one colour is grey
Heat = NDArray[np.floating[Any]]  # frames x rows x columns in [0, 1]
Paint = Callable[[int, Image.Image], Image.Image]


def clip(
    values: Voxels, heat: Heat, frames: Sequence[int], style: Style, width: int = FIGURE_WIDTH, *, word: str = "frame"
) -> Image.Image:
    """Draw some frames under their heat, and beneath them a bar of the strongest heat in every frame.

    A thin line leads from each frame to its position in the bar, and the heading of the hottest frame names it so.
    """
    check_opacity(style.opacity)
    hottest_frame = hottest(heat.max((1, 2)), style.cold)

    def paint(number: int, frame: Image.Image) -> Image.Image:
        return overlay(frame, heat[number], colormap=style.colormap, opacity=style.opacity)

    drawn = strip(values, frames, style, width, word=word, paint=paint, hottest_frame=hottest_frame)
    leaders = _leaders(frames, len(values), hottest_frame, drawn.width, style)
    return stack([drawn, leaders, _bar(heat, word, drawn.width, style)])


def volume(values: Voxels, heat: Heat, slices: Sequence[int], style: Style, width: int = FIGURE_WIDTH) -> Image.Image:
    """Draw the three planes through the hottest voxel, marked by crosshairs, and below them some slices under their heat."""
    planes = _planes(values, heat, style, width)
    return stack([planes, clip(values, heat, slices, style, width, word="slice")], 14 * style.scale)


def strip(
    values: Voxels,
    frames: Sequence[int],
    style: Style,
    width: int = FIGURE_WIDTH,
    *,
    word: str,
    paint: Paint | None = None,
    hottest_frame: int | None = None,
) -> Image.Image:
    """Draw some frames or slices in order, each under its number counted from 1. ``paint`` may draw over each."""
    per_row = _per_row(frames)
    gap = _GAP * style.scale
    room = (width + gap) // max(per_row, _FEWEST) - gap
    rows, columns = values.shape[1:3]
    ratio = min(room / columns, _TALLEST * room / rows)
    blocks = []
    for number in frames:
        frame = enlarged(_picture(values[number]), ratio, _TINY)
        heading = f"{word} {number + 1} of {len(values)}"
        drawn = paint(number, frame) if paint else frame
        blocks.append(_headed(drawn, heading, style, is_hottest=number == hottest_frame))
    return stack([beside(blocks[start : start + per_row], gap) for start in range(0, len(blocks), per_row)], gap)


def _per_row(frames: Sequence[int]) -> int:
    """Return how many frames stand in a row, so that the rows are nearly equally long."""
    return ceil(len(frames) / ceil(len(frames) / _MOST_IN_A_ROW))


def _picture(values: Voxels) -> Image.Image:
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).convert("RGB")


def _headed(picture: Image.Image, heading: str, style: Style, *, is_hottest: bool = False) -> Image.Image:
    lettering = (HOTTEST if is_hottest else HEADING).scaled(style.scale)
    long = f"{heading} · hottest"
    fits = is_hottest and lettering.width(long) <= picture.width
    text = long if fits else lettering.shorten(heading, picture.width)
    return stack([lines_of_text([text], lettering, picture.width), picture], style.scale)


def _leaders(frames: Sequence[int], count: int, hottest_frame: int | None, width: int, style: Style) -> Image.Image:
    """Draw lines from the middle of each frame to its position in the bar; with several rows, ticks at these positions."""
    per_row = _per_row(frames)
    pitch = (width + _GAP * style.scale) / per_row
    page = sheet(width, 16 * style.scale)
    for position, number in enumerate(frames):
        above, below = (position + 0.5) * pitch - _GAP * style.scale / 2, (number + 0.5) / count * width
        path = [(above, 0.0), (above, page.height * 0.2), (below, page.height * 0.7), (below, float(page.height))]
        ink, thickness = (INK, 1.8) if number == hottest_frame else (LEADER, 1.0)
        page.paste(
            ink, (0, 0), stroke(path if len(frames) == per_row else path[2:], page.size, thickness * style.scale)
        )
    return page


def _bar(heat: Heat, word: str, width: int, style: Style) -> Image.Image:
    """Draw the strongest evidence in each frame, for or against the target, from the first frame to the last."""
    highest, lowest = heat.max((1, 2)), heat.min((1, 2))
    strongest = np.where(highest - style.cold >= style.cold - lowest, highest, lowest)
    lettering = NUMBERS.scaled(style.scale)
    labels = sheet(width, lettering.leading)
    texts = (f"{word} 1", f"strongest heat in each {word}", f"{word} {len(heat)}")
    if sum(lettering.width(text) for text in texts) < width - 2 * lettering.leading:
        for text, share in zip(texts, (0.0, 0.5, 1.0), strict=True):
            lettering.draw(labels, round(share * (width - lettering.width(text))), 0, text)
    return stack([heat_line(strongest, style.colormap, (width, 10 * style.scale)), labels], 2 * style.scale)


def _planes(values: Voxels, heat: Heat, style: Style, width: int) -> Image.Image:
    """Draw the planes along a volume's three axes through its hottest voxel, or through the middle where there is none."""
    voxel = hottest_cell(heat, style.cold)
    depth, rows, columns = heat.shape
    centre = voxel or (depth // 2, rows // 2, columns // 2)
    gap = _GAP * style.scale
    # two pixels less, as each plane's width is rounded
    ratio = min((width - 2 * gap - 2) / (2 * columns + rows), _PLANES_TALLEST * style.scale / max(rows, depth))
    blocks = []
    for axis, word in enumerate(("slice", "row", "column")):
        picture = enlarged(_picture(np.take(values, centre[axis], axis)), ratio, _TINY)
        plane = np.take(heat, centre[axis], axis)
        drawn = overlay(picture, plane, colormap=style.colormap, opacity=style.opacity)
        if voxel:
            down, across = (position for other, position in enumerate(voxel) if other != axis)
            point = (across + 0.5) / plane.shape[1] * drawn.width, (down + 0.5) / plane.shape[0] * drawn.height
            _draw_crosshairs(drawn, point, style.scale)
        heading = f"{word} {centre[axis] + 1} of {heat.shape[axis]}"
        blocks.append(_headed(drawn, heading, style, is_hottest=voxel is not None and axis == 0))
    return beside(blocks, gap)


def _draw_crosshairs(picture: Image.Image, point: tuple[float, float], scale: int) -> None:
    """Draw hairlines through a point, with a gap around it so that it stays visible."""
    across, down = (int(coordinate) for coordinate in point)
    pen, gap = ImageDraw.Draw(picture), 14 * scale
    lines = [(start, down, end, down) for start, end in ((0, across - gap), (across + gap, picture.width - 1))]
    lines += [(across, start, across, end) for start, end in ((0, down - gap), (down + gap, picture.height - 1))]
    for left, top, right, bottom in lines:
        if left < right or top < bottom:
            pen.line((left, top, right, bottom), fill=CROSS, width=scale)
