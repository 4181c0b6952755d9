"""What a figure is set from: white blocks of text and colour, stacked and put side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glowmap.render.colormap import COLORMAPS, colorize
from glowmap.render.style import Colour, Lettering

HAIRLINE = (205, 207, 212)
TINY = 96  # pixels: a picture so small is looked at pixel by pixel, and blurring them would invent others
_FINER = 4  # drawn so much larger and reduced, lines have smooth edges
_MOST_FINE = 8192  # pixels of a page that is drawn larger
Size = tuple[int, int]


def sheet(width: int, height: int) -> Image.Image:
    """Return a white block."""
    return Image.new("RGB", (width, height), (255, 255, 255))


def stack(blocks: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Put blocks under each other, their left edges in line."""
    page = sheet(max(block.width for block in blocks), sum(block.height for block in blocks) + gap * (len(blocks) - 1))
    top = 0
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height + gap
    return page


def beside(blocks: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Put blocks side by side, their top edges in line."""
    page = sheet(sum(block.width for block in blocks) + gap * (len(blocks) - 1), max(block.height for block in blocks))
    left = 0
    for block in blocks:
        page.paste(block, (left, 0))
        left += block.width + gap
    return page


def framed(block: Image.Image, *, width: int, left: int = 0, top: int = 0, bottom: int = 0) -> Image.Image:
    """Add white around a block so that it is ``width`` wide."""
    assert left + block.width <= width, "a block runs out of its frame"
    page = sheet(width, top + block.height + bottom)
    page.paste(block, (left, top))
    return page


def enlarged(image: Image.Image, ratio: int | float, tiny: int = TINY) -> Image.Image:
    """Resize a picture as it is looked at best; a tiny one by whole pixels, and so perhaps less than asked."""
    if max(image.size) <= tiny and ratio >= 1:
        return image.resize((image.width * int(ratio), image.height * int(ratio)), Image.Resampling.NEAREST)
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    if size == image.size:
        return image
    # enlarging with Lanczos puts rings around edges
    return image.resize(size, Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.BICUBIC)


def lines_of_text(lines: Sequence[str], lettering: Lettering, width: int) -> Image.Image:
    """Set lines that are known to fit."""
    block = sheet(width, lettering.leading * len(lines))
    for number, line in enumerate(lines):
        lettering.draw(block, 0, number * lettering.leading, line)
    return block


def paragraphs(texts: Sequence[str], lettering: Lettering, width: int, most: int | None = None) -> Image.Image:
    """Set each text on its own lines, wrapped; ``most`` limits the lines of each."""
    return lines_of_text([line for text in texts for line in lettering.wrap(text, width, most)], lettering, width)


def colour_bar(colormap: str, ends: tuple[str, str], lettering: Lettering, width: int) -> Image.Image:
    """Draw a colormap from left to right on one line, its two end values beside it."""
    low, high = (lettering.shorten(end, width * 3 // 10) for end in ends)
    block = sheet(width, lettering.leading)
    gap = lettering.size // 2
    left, right = lettering.width(low) + gap, width - lettering.width(high) - gap
    lettering.draw(block, 0, 0, low)
    lettering.draw(block, right + gap, 0, high)
    height = round(lettering.size * 0.7)
    top = round(lettering.size * 0.32)
    columns = np.rint(np.linspace(0, 255, right - left)).astype(np.intp)
    colours = np.repeat(COLORMAPS[colormap][columns][None], height, axis=0)
    block.paste(Image.fromarray(colours), (left, top))
    return block


def heat_line(values: NDArray[np.floating[Any]], colormap: str, size: Size) -> Image.Image:
    """Draw a row of values in [0, 1] as one line of colours from left to right, each as wide as the others."""
    place = np.arange(size[0]) * len(values) // size[0]
    return Image.fromarray(np.repeat(colorize(values, colormap)[place][None], size[1], axis=0))


def stroke(path: Sequence[tuple[float, float]], size: Size, thickness: float) -> Image.Image:
    """Draw a line through points (across, down) as a mask of a page of this size, smooth at its edges."""
    return strokes([path], size, thickness)


def strokes(paths: Sequence[Sequence[tuple[float, float]]], size: Size, thickness: float) -> Image.Image:
    """Draw several lines as one mask; on a page of thousands of pixels, whose lines are thick, less smooth."""
    finer = max(1, min(_FINER, _MOST_FINE // max(size)))
    mask = Image.new("L", (size[0] * finer, size[1] * finer), 0)
    pen = ImageDraw.Draw(mask)
    for path in paths:
        points = [(across * finer, down * finer) for across, down in path]
        pen.line(points, fill=255, width=max(1, round(thickness * finer)), joint="curve")
    return mask.resize(size, Image.Resampling.BOX)


def legend(entries: Sequence[tuple[Colour, str]], lettering: Lettering, width: int, most: int) -> Image.Image:
    """Set swatches with their names one after the other over at most ``most`` lines; the last counts those left out."""
    keys = [_key(colour, text, lettering, width) for colour, text in entries]
    lines = _flow(keys, width, lettering.size)
    if len(lines) > most:
        lines = lines[:most]
        more = _more(len(keys) - sum(map(len, lines)), lettering)
        while lines[-1] and _length(lines[-1], lettering.size) + more.width > width:
            lines[-1].pop()
            more = _more(len(keys) - sum(map(len, lines)), lettering)
        lines[-1].append(more)
    return framed(stack([beside(line, lettering.size) for line in lines]), width=width)


def _more(count: int, lettering: Lettering) -> Image.Image:
    text = f"+ {count} more"
    return lines_of_text([text], lettering, lettering.width(text))


def _length(keys: Sequence[Image.Image], gap: int) -> int:
    return sum(key.width + gap for key in keys)


def _flow(keys: Sequence[Image.Image], width: int, gap: int) -> list[list[Image.Image]]:
    lines: list[list[Image.Image]] = []
    for key in keys:
        if lines and _length(lines[-1], gap) + key.width <= width:
            lines[-1].append(key)
        else:
            lines.append([key])
    return lines


def _key(colour: Colour, text: str, lettering: Lettering, width: int) -> Image.Image:
    side = round(lettering.size * 0.8)
    gap = round(lettering.size * 0.4)
    shown = lettering.shorten(text, width - side - gap)
    block = sheet(side + gap + lettering.width(shown), lettering.leading)
    top = round(lettering.size * 0.28)
    ImageDraw.Draw(block).rectangle((0, top, side - 1, top + side - 1), fill=colour)
    lettering.draw(block, side + gap, 0, shown)
    return block
