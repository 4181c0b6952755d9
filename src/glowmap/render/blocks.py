"""Blocks of a figure: text, bars and legends on white, stacked or side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from glowmap.render.colormap import COLORMAPS, colorize
from glowmap.render.style import Colour, Lettering

HAIRLINE = (205, 207, 212)
TINY = 96  # pixels: pictures up to this size are enlarged by whole pixels, without interpolation
_FINER = 4  # lines are drawn this much larger and reduced, for smooth edges
_MOST_FINE = 8192  # pixels: the largest side of the enlarged page
Size = tuple[int, int]


def sheet(width: int, height: int) -> Image.Image:
    """Return a white block of this size in pixels."""
    return Image.new("RGB", (width, height), (255, 255, 255))


def stack(blocks: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Stack blocks below each other, aligned at the left."""
    page = sheet(max(block.width for block in blocks), sum(block.height for block in blocks) + gap * (len(blocks) - 1))
    top = 0
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height + gap
    return page


def beside(blocks: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Put blocks side by side, aligned at the top."""
    page = sheet(sum(block.width for block in blocks) + gap * (len(blocks) - 1), max(block.height for block in blocks))
    left = 0
    for block in blocks:
        page.paste(block, (left, 0))
        left += block.width + gap
    return page


def framed(block: Image.Image, *, width: int, left: int = 0, top: int = 0, bottom: int = 0) -> Image.Image:
    """Add white around a block so that it is ``width`` pixels wide."""
    assert left + block.width <= width, "a block is wider than its frame"
    page = sheet(width, top + block.height + bottom)
    page.paste(block, (left, top))
    return page


def enlarged(image: Image.Image, ratio: int | float, tiny: int = TINY) -> Image.Image:
    """Resize a picture by a ratio. Pictures of at most ``tiny`` pixels are enlarged by the whole part of the ratio."""
    if max(image.size) <= tiny and ratio >= 1:
        return image.resize((image.width * int(ratio), image.height * int(ratio)), Image.Resampling.NEAREST)
    size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    if size == image.size:
        return image
    # Lanczos would put rings around edges when enlarging
    return image.resize(size, Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.BICUBIC)


def lines_of_text(lines: Sequence[str], lettering: Lettering, width: int) -> Image.Image:
    """Draw lines of text that fit into ``width``."""
    block = sheet(width, lettering.leading * len(lines))
    for number, line in enumerate(lines):
        lettering.draw(block, 0, number * lettering.leading, line)
    return block


def paragraphs(texts: Sequence[str], lettering: Lettering, width: int, most: int | None = None) -> Image.Image:
    """Draw texts below each other, each wrapped to at most ``most`` lines."""
    return lines_of_text([line for text in texts for line in lettering.wrap(text, width, most)], lettering, width)


def colour_bar(colormap: str, ends: tuple[str, str], lettering: Lettering, width: int) -> Image.Image:
    """Draw a colormap from left to right on one line, between the texts of its two ends."""
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
    """Draw a row of values in [0, 1] as one line of colours from left to right, each equally wide."""
    columns = np.arange(size[0]) * len(values) // size[0]
    return Image.fromarray(np.repeat(colorize(values, colormap)[columns][None], size[1], axis=0))


def stroke(path: Sequence[tuple[float, float]], size: Size, thickness: float) -> Image.Image:
    """Draw a line through points (across, down) as the mask of a page of this size, with smooth edges."""
    return strokes([path], size, thickness)


def strokes(paths: Sequence[Sequence[tuple[float, float]]], size: Size, thickness: float) -> Image.Image:
    """Draw several lines as one mask. Edges are less smooth on very large pages, whose lines are thick."""
    finer = max(1, min(_FINER, _MOST_FINE // max(size)))
    mask = Image.new("L", (size[0] * finer, size[1] * finer), 0)
    pen = ImageDraw.Draw(mask)
    for path in paths:
        points = [(across * finer, down * finer) for across, down in path]
        pen.line(points, fill=255, width=max(1, round(thickness * finer)), joint="curve")
    return mask.resize(size, Image.Resampling.BOX)


def legend(entries: Sequence[tuple[Colour, str]], lettering: Lettering, width: int, most: int) -> Image.Image:
    """Draw swatches with their names over at most ``most`` lines. The last line ends with the number of those left out."""
    keys = [_key(colour, text, lettering, width) for colour, text in entries]
    lines = _broken_into_lines(keys, width, lettering.size)
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


def _broken_into_lines(keys: Sequence[Image.Image], width: int, gap: int) -> list[list[Image.Image]]:
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
    text = lettering.shorten(text, width - side - gap)
    block = sheet(side + gap + lettering.width(text), lettering.leading)
    top = round(lettering.size * 0.28)
    ImageDraw.Draw(block).rectangle((0, top, side - 1, top + side - 1), fill=colour)
    lettering.draw(block, side + gap, 0, text)
    return block
