"""The channels of a signal as curves over one axis of samples, coloured by the heat along it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.render.axis import hottest_span, ticks
from glowmap.render.blocks import Size, beside, heat_line, lines_of_text, sheet, stack, stroke
from glowmap.render.colormap import COLORMAPS, oklab_from_srgb, unit
from glowmap.render.overlays import check_opacity, eased, glowing, resize_heat
from glowmap.render.style import FIGURE_WIDTH, HEADING, HOTTEST, INK, LEADER, NUMBERS, Colour, Style

MOST_CURVES = 12
GUTTER = 104  # pixels at the left, for the names and ranges of the channels
_ALL_TOGETHER, _LOWEST, _HIGHEST = 520, 56, 190  # pixels: the height of all channels, and the limits of one
_GRID: Colour = (238, 239, 242)
_LIGHTEST = 0.62  # lightness of a line that still stands out on white
Samples = NDArray[np.floating[Any]]  # channels x samples
Row = NDArray[np.float32]


def curves(
    values: Samples,
    heat: NDArray[np.floating[Any]] | None,
    channels: Sequence[int],
    style: Style,
    width: int = FIGURE_WIDTH,
) -> Image.Image:
    """Draw some channels below each other, each over its own range. Where it is hot, the ground glows and the line is thick.

    ``heat`` has one value in [0, 1] for every sample, or is None for the bare signal. A bracket marks the samples around the
    highest heat that have at least half of it, and a bar beneath shows the heat alone.
    """
    check_opacity(style.opacity)
    count, scale = values.shape[1], style.scale
    width -= GUTTER * scale
    height = min(_HIGHEST, max(_LOWEST, _ALL_TOGETHER // len(channels))) * scale
    columns = None if heat is None else resize_heat(heat[None], rows=1, columns=width)[0]
    tick_columns = [round((tick + 0.5) / count * width) for tick in ticks(count, 12)]
    blocks = [] if heat is None else [_beside_gutter("", "", _bracket(heat, width, style), style)]
    for channel in channels:
        lane = _lane(values[channel], columns, (width, height), tick_columns, style)
        blocks.append(_beside_gutter(f"channel {channel + 1}", _range(values[channel]), lane, style))
    if heat is not None:
        bar = heat_line(heat, style.colormap, (width, 10 * scale))
        blocks.append(_beside_gutter("", "", bar, style))
    blocks.append(_beside_gutter("", "sample", _axis(count, tick_columns, width, style), style))
    return stack(blocks, 3 * scale)


def _lane(samples: Row, heat: Row | None, size: Size, tick_columns: Sequence[int], style: Style) -> Image.Image:
    """Draw one channel: glowing ground, hairlines at the ticks, and its curve. ``heat`` has one value a column."""
    lane = sheet(*size)
    for column in tick_columns:
        lane.paste(_GRID, (column, 0, column + style.scale, size[1]))
    path = _path(samples, size, 6.0 * style.scale)
    thin = stroke(path, size, 1.3 * style.scale)
    if heat is None:
        lane.paste(INK, (0, 0), thin)
        return lane
    lane = glowing(lane, np.repeat(heat[None], size[1], axis=0), style.colormap, style.opacity)
    strength = eased(heat, style.colormap)
    thick = np.asarray(stroke(path, size, 2.3 * style.scale), dtype=np.float32)
    mask = np.asarray(thin, dtype=np.float32) * (1 - strength) + thick * strength
    colours = np.repeat(_line_colours(heat, strength, style.colormap)[None], size[1], axis=0)
    return Image.composite(Image.fromarray(colours), lane, Image.fromarray(np.rint(mask).astype(np.uint8)))


def _line_colours(heat: Row, strength: Row, colormap: str) -> NDArray[np.uint8]:
    """Mix ink with the heat's colour, column by column. A colour too light for a line gives way to the nearest dark entry."""
    table = COLORMAPS[colormap]
    dark = np.flatnonzero(oklab_from_srgb(table)[:, 0] <= _LIGHTEST)
    entries = np.rint(unit(heat) * 255).astype(np.intp)
    nearest = dark[np.abs(entries[:, None] - dark).argmin(1)]
    mixed = (1 - strength[:, None]) * np.array(INK) + strength[:, None] * table[nearest]
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def _path(samples: Row, size: Size, margin: float) -> list[tuple[float, float]]:
    """Return the points of the curve (across, down); where several samples fall on one pixel, the lowest and the highest."""
    low, high = float(samples.min()), float(samples.max())
    down = (high - samples.astype(np.float64)) / (high - low) if high > low else np.full(len(samples), 0.5)
    down = margin + down * (size[1] - 2 * margin)
    if len(samples) == 1:
        return [(0.0, float(down[0])), (float(size[0]), float(down[0]))]
    across = (np.arange(len(samples)) + 0.5) / len(samples) * size[0]
    if len(samples) > 2 * size[0]:
        starts = np.arange(size[0]) * len(samples) // size[0]
        ends = np.stack([np.minimum.reduceat(down, starts), np.maximum.reduceat(down, starts)], axis=1)
        down, across = ends.ravel(), np.repeat(np.arange(size[0]) + 0.5, 2)
    return list(zip(across.tolist(), down.tolist(), strict=True))


def _bracket(heat: Samples, width: int, style: Style) -> Image.Image:
    """Draw a bracket over the hottest span, and the numbers of its first and last sample."""
    lettering = HOTTEST.scaled(style.scale)
    page = sheet(width, lettering.leading + 9 * style.scale)
    span = hottest_span(heat, style.cold)
    if span is None:
        return page
    left, right = span[0] / len(heat) * width, (span[1] + 1) / len(heat) * width
    text = f"hottest: samples {span[0]:,} to {span[1]:,}" if span[1] > span[0] else f"hottest: sample {span[0]:,}"
    start = round(min(max((left + right - lettering.width(text)) / 2, 0), width - lettering.width(text) - 1))
    lettering.draw(page, start, 0, text)
    top, bottom = lettering.leading + 3.0 * style.scale, float(page.height)
    path = [(left, bottom), (left, top), (right, top), (right, bottom)]
    page.paste(INK, (0, 0), stroke(path, page.size, 1.6 * style.scale))
    return page


def _axis(count: int, tick_columns: Sequence[int], width: int, style: Style) -> Image.Image:
    """Draw the axis of the samples with its ticks and their numbers."""
    lettering = NUMBERS.scaled(style.scale)
    page = sheet(width, lettering.leading + 6 * style.scale)
    page.paste(LEADER, (0, 0, width, style.scale))
    for tick, column in zip(ticks(count, 12), tick_columns, strict=True):
        page.paste(LEADER, (column, 0, column + style.scale, 5 * style.scale))
        text = f"{tick:,}"
        start = min(max(column - lettering.width(text) // 2, 0), width - lettering.width(text) - 1)
        lettering.draw(page, start, 6 * style.scale, text)
    return page


def _range(samples: Row) -> str:
    return f"{samples.min():.3g} to {samples.max():.3g}"


def _beside_gutter(name: str, detail: str, block: Image.Image, style: Style) -> Image.Image:
    """Put a block to the right of its name and a smaller line of text below the name."""
    gutter = GUTTER * style.scale
    texts = [(name, HEADING.scaled(style.scale)), (detail, NUMBERS.scaled(style.scale))]
    lines = [
        lines_of_text([lettering.shorten(text, gutter - 8)], lettering, gutter) for text, lettering in texts if text
    ]
    return beside([stack(lines) if lines else sheet(gutter, 1), block])
