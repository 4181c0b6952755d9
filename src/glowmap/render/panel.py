"""A figure: tiles in rows, a title above and notes below."""

from collections.abc import Sequence
from math import ceil

from PIL import Image

from glowmap.errors import OutputError
from glowmap.render.blocks import HAIRLINE, beside, framed, paragraphs, sheet, stack
from glowmap.render.look import BETWEEN_COLUMNS, COLUMN
from glowmap.render.text import Lettering
from glowmap.render.tile import NARROWEST, WIDEST, Tile, column, heading_lines, shown_width

MOST_IN_A_ROW = 6
_ROOM = 1680  # pixels that a row may take before its tiles become narrower
_MARGIN, _BETWEEN_ROWS = 24, 22

_TITLE = Lettering(20, bold=True)
_FOOTER = Lettering(12, ink=(112, 116, 124))


def panel(
    rows: Sequence[Sequence[Tile]], *, title: str = "", footer: Sequence[str] = (), scale: int = 1
) -> Image.Image:
    """Set rows of tiles as one figure on white.

    Tiles share one width or take several columns, and a row of more than six goes on in the next line. ``scale=2`` draws
    everything twice as large, for print. OutputError where there is no tile, or a scale below 1.
    """
    if scale < 1:
        raise OutputError(f"a panel is drawn at scale 1 or larger, and {scale} is neither; try 2 for print")
    lines = [line for row in rows for line in _broken(row)]
    if not lines:
        raise OutputError("a panel shows at least one tile, and it was given none; pass panel([[Tile(image)]])")
    tile_width = scale * _tile_width(lines)
    gap = scale * BETWEEN_COLUMNS
    width = max(_columns(line) for line in lines) * (tile_width + gap) - gap
    body = stack([_row(line, tile_width, gap, scale) for line in lines], scale * _BETWEEN_ROWS)
    blocks = [body]
    if title:
        blocks.insert(0, paragraphs([title], _TITLE.scaled(scale), width))
    if footer:
        blocks.append(_notes(footer, width, scale))
    margin = scale * _MARGIN
    page = stack(blocks, scale * 14)
    return framed(page, width=page.width + 2 * margin, left=margin, top=margin, bottom=margin)


def _broken(row: Sequence[Tile]) -> list[Sequence[Tile]]:
    # lines of nearly equal length: seven tiles are four and three, not six and one left over
    each = ceil(_columns(row) / ceil(_columns(row) / MOST_IN_A_ROW)) if row else 0
    lines: list[list[Tile]] = []
    for tile in row:
        if lines and _columns(lines[-1]) + tile.columns <= each:
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


def _notes(footer: Sequence[str], width: int, scale: int) -> Image.Image:
    rule = sheet(width, scale)
    rule.paste(HAIRLINE, (0, 0, width, scale))
    return stack([rule, paragraphs(footer, _FOOTER.scaled(scale), width)], scale * 8)
