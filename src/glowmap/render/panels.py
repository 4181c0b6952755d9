"""Figures: tiles in rows, with a title above and a footer below."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from PIL import Image

from glowmap.errors import OutputError
from glowmap.render.blocks import (
    HAIRLINE,
    TINY,
    Size,
    beside,
    colour_bar,
    enlarged,
    framed,
    legend,
    lines_of_text,
    paragraphs,
    sheet,
    stack,
)
from glowmap.render.style import BETWEEN_COLUMNS, COLUMN, Colour, Lettering, check_scale

NARROWEST, WIDEST = 260, 420  # pixels: room for a caption; three tiles in a row still fit on a page
TALLEST = 1.25  # times the width: the tallest picture of a row
_HEADING = Lettering(15, bold=True)
_CAPTION = Lettering(13, ink=(82, 86, 94))
_KEY = Lettering(13, ink=(52, 55, 61))


@dataclass(frozen=True)
class ColourBar:
    """The scale below a heat map: its colormap and the texts at its two ends."""

    colormap: str = "glow"
    low: str = "0"
    high: str = "1"


@dataclass(frozen=True)
class Tile:
    """A picture with its heading above, and its colour bar, legend and caption lines below.

    ``draw`` redraws the picture for a size in pixels and a scale of its lettering, where resizing ``image`` would blur text in
    it. ``columns`` is the number of columns of the figure that the tile takes.
    """

    image: Image.Image
    heading: str = ""
    caption: tuple[str, ...] = ()
    bar: ColourBar | None = None
    legend: tuple[tuple[Colour, str], ...] = ()
    draw: Callable[[Size, int], Image.Image] | None = None
    columns: int = 1


def shown_width(size: Size, widest: int = WIDEST) -> int:
    """Return the width in pixels at which a figure shows a picture of this size."""
    if size[0] >= NARROWEST:
        return min(size[0], widest)
    return math.ceil(NARROWEST / size[0]) * size[0] if max(size) <= TINY else NARROWEST


def heading_lines(tile: Tile, width: int, scale: int) -> list[str]:
    """Break a tile's heading into at most two lines."""
    return _HEADING.scaled(scale).wrap(tile.heading, width, most=2) if tile.heading else []


def column(tile: Tile, *, width: int, lines_above: int, scale: int) -> Image.Image:
    """Draw a tile as one block, with room for ``lines_above`` lines of heading."""
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


MOST_IN_A_ROW = 6
_ROOM = 1680  # pixels: the width of a row from which on its tiles become narrower
_MARGIN, _BETWEEN_ROWS = 24, 22
_TITLE = Lettering(20, bold=True)
_FOOTER = Lettering(12, ink=(112, 116, 124))


def panel(
    rows: Sequence[Sequence[Tile]], *, title: str = "", footer: Sequence[str] = (), scale: int = 1
) -> Image.Image:
    """Draw rows of tiles as one figure on white.

    A tile is one column wide, or several. A row of more than six columns continues on the next line. ``scale=2`` draws
    everything twice as large, for print. Raises OutputError where there is no tile, and for a scale below 1.
    """
    check_scale(scale)
    lines = [line for row in rows for line in _broken(row)]
    if not lines:
        raise OutputError("there are no tiles to draw; pass at least one, as in panel([[Tile(image)]])")
    tile_width = scale * _tile_width(lines)
    gap = scale * BETWEEN_COLUMNS
    width = max(_columns(line) for line in lines) * (tile_width + gap) - gap
    body = stack([_row(line, tile_width, gap, scale) for line in lines], scale * _BETWEEN_ROWS)
    blocks = [body]
    if title:
        blocks.insert(0, paragraphs([title], _TITLE.scaled(scale), width))
    if footer:
        blocks.append(_footer_block(footer, width, scale))
    margin = scale * _MARGIN
    page = stack(blocks, scale * 14)
    return framed(page, width=page.width + 2 * margin, left=margin, top=margin, bottom=margin)


def _broken(row: Sequence[Tile]) -> list[Sequence[Tile]]:
    # lines of nearly equal length: seven tiles become four and three, not six and one
    per_line = ceil(_columns(row) / ceil(_columns(row) / MOST_IN_A_ROW)) if row else 0
    lines: list[list[Tile]] = []
    for tile in row:
        if lines and _columns(lines[-1]) + tile.columns <= per_line:
            lines[-1].append(tile)
        else:
            lines.append([tile])
    return list(lines)


def _columns(line: Sequence[Tile]) -> int:
    return sum(tile.columns for tile in line)


def _tile_width(lines: Sequence[Sequence[Tile]]) -> int:
    if any(tile.columns > 1 for line in lines for tile in line):
        return COLUMN
    widest = max(NARROWEST, min(WIDEST, _ROOM // max(len(line) for line in lines)))
    return max(shown_width(tile.image.size, widest) for line in lines for tile in line)


def _row(line: Sequence[Tile], width: int, gap: int, scale: int) -> Image.Image:
    widths = [tile.columns * (width + gap) - gap for tile in line]
    above = max(len(heading_lines(tile, across, scale)) for tile, across in zip(line, widths, strict=True))
    blocks = [
        column(tile, width=across, lines_above=above, scale=scale) for tile, across in zip(line, widths, strict=True)
    ]
    return beside(blocks, gap)


def _footer_block(footer: Sequence[str], width: int, scale: int) -> Image.Image:
    rule = sheet(width, scale)
    rule.paste(HAIRLINE, (0, 0, width, scale))
    return stack([rule, paragraphs(footer, _FOOTER.scaled(scale), width)], scale * 8)
