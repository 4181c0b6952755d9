"""One picture of a figure with what is written around it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from glowmap.render.blocks import (
    TINY,
    Size,
    colour_bar,
    enlarged,
    framed,
    legend,
    lines_of_text,
    paragraphs,
    sheet,
    stack,
)
from glowmap.render.text import Colour, Lettering

NARROWEST, WIDEST = 260, 420  # a caption fits into the one; beyond the other a row of three leaves a page
TALLEST = 1.25  # times the width, so that a portrait does not tower over its row

_HEADING = Lettering(15, bold=True)
_CAPTION = Lettering(13, ink=(82, 86, 94))
_KEY = Lettering(13, ink=(52, 55, 61))


@dataclass(frozen=True)
class ColourBar:
    """The scale under a heat map: its colormap and what its two ends stand for."""

    colormap: str = "glow"
    low: str = "0"
    high: str = "1"


@dataclass(frozen=True)
class Tile:
    """A picture with its heading above, and its colour bar, legend and caption lines below.

    ``draw`` makes the picture anew for a size in pixels and the scale of its lettering, where resizing ``image`` would
    blur what is written in it. ``columns`` is how many of its figure's columns it takes.
    """

    image: Image.Image
    heading: str = ""
    caption: tuple[str, ...] = ()
    bar: ColourBar | None = None
    legend: tuple[tuple[Colour, str], ...] = ()
    draw: Callable[[Size, int], Image.Image] | None = None
    columns: int = 1


def shown_width(size: Size, widest: int = WIDEST) -> int:
    """Choose the width at which a picture of this size is shown best."""
    if size[0] >= NARROWEST:
        return min(size[0], widest)
    return math.ceil(NARROWEST / size[0]) * size[0] if max(size) <= TINY else NARROWEST


def heading_lines(tile: Tile, width: int, scale: int) -> list[str]:
    """Break a tile's heading into two lines at most."""
    return _HEADING.scaled(scale).wrap(tile.heading, width, most=2) if tile.heading else []


def column(tile: Tile, *, width: int, lines_above: int, scale: int) -> Image.Image:
    """Set a tile as one block, its picture below room for ``lines_above`` lines of heading."""
    heading, caption, key = (lettering.scaled(scale) for lettering in (_HEADING, _CAPTION, _KEY))
    lines = heading_lines(tile, width, scale)
    above = [lines_of_text([""] * (lines_above - len(lines)) + lines, heading, width)] if lines_above else []
    below = []
    if tile.bar is not None:
        below.append(colour_bar(tile.bar.colormap, (tile.bar.low, tile.bar.high), key, width // tile.columns))
    if tile.legend:
        below.append(legend(tile.legend, key, width, most=4))
    if tile.caption:
        below.append(paragraphs(tile.caption, caption, width, most=3))
    picture = framed(_fitted(tile, width, scale), width=width)
    return stack([*above, sheet(width, 3 * scale), picture, *below], 4 * scale)


def _fitted(tile: Tile, width: int, scale: int) -> Image.Image:
    image = tile.image.convert("RGB")
    across, down = image.size
    ratio = min(width / across, round(width * TALLEST) / down)
    if tile.draw is None:
        return enlarged(image, ratio)
    size = max(1, round(across * ratio)), max(1, round(down * ratio))
    return image if size == image.size and scale == 1 else tile.draw(size, scale)
