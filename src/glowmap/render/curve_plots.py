"""The channels of a signal as curves over one axis of samples, coloured by the heat along it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.render.blocks import Size, beside, heat_line, lines_of_text, sheet, stack, stroke
from glowmap.render.colormap import COLORMAPS, oklab_from_srgb, unit
from glowmap.render.overlays import check_opacity, eased, glowing, resize_heat
from glowmap.render.places import hottest_span, ticks
from glowmap.render.style import HEADING, HOTTEST, INK, LEADER, NUMBERS, Colour, Look

MOST_CURVES = 12
GUTTER = 104  # pixels at the left, for the names and ranges of the channels
_TOGETHER, _LOWEST, _HIGHEST = 520, 56, 190  # pixels: of all channels, and of one
_GRID: Colour = (238, 239, 242)
_LIGHTEST = 0.62  # that a line may be on a light ground
Samples = NDArray[np.floating[Any]]  # channels x samples
Row = NDArray[np.float32]


def curves(values: Samples, heat: NDArray[np.floating[Any]] | None, places: Sequence[int], look: Look) -> Image.Image:
    """Draw some channels below each other, each over its own range; where it is hot their ground glows and the line is thick.

    ``heat`` has one value in [0, 1] for every sample, or is None for the bare signal. The span around the highest heat with at
    least half of it is marked, and a bar beneath shows the heat alone.
    """
    check_opacity(look.opacity)
    count, scale = values.shape[1], look.scale
    width = look.width - GUTTER * scale
    height = min(_HIGHEST, max(_LOWEST, _TOGETHER // len(places))) * scale
    along = None if heat is None else resize_heat(heat[None], rows=1, columns=width)[0]
    at = [round((tick + 0.5) / count * width) for tick in ticks(count, 12)]
    blocks = [] if heat is None else [_beside_gutter("", "", _span(heat, width, look), look)]
    for place in places:
        lane = _lane(values[place], along, (width, height), at, look)
        blocks.append(_beside_gutter(f"channel {place + 1}", _range(values[place]), lane, look))
    if heat is not None:
        bar = heat_line(heat, look.colormap, (width, 10 * scale))
        blocks.append(_beside_gutter("", "", bar, look))
    blocks.append(_beside_gutter("", "sample", _axis(count, at, width, look), look))
    return stack(blocks, 3 * scale)


def _lane(samples: Row, along: Row | None, size: Size, at: Sequence[int], look: Look) -> Image.Image:
    """Draw one channel: glowing ground, hair lines at the ticks, and its curve."""
    lane = sheet(*size)
    for across in at:
        lane.paste(_GRID, (across, 0, across + look.scale, size[1]))
    path = _path(samples, size, 6.0 * look.scale)
    thin = stroke(path, size, 1.3 * look.scale)
    if along is None:
        lane.paste(INK, (0, 0), thin)
        return lane
    lane = glowing(lane, np.repeat(along[None], size[1], axis=0), look.colormap, look.opacity)
    hot = eased(along, look.colormap)
    thick = np.asarray(stroke(path, size, 2.3 * look.scale), dtype=np.float32)
    mask = np.asarray(thin, dtype=np.float32) * (1 - hot) + thick * hot
    colours = np.repeat(_line_colours(along, hot, look.colormap)[None], size[1], axis=0)
    return Image.composite(Image.fromarray(colours), lane, Image.fromarray(np.rint(mask).astype(np.uint8)))


def _line_colours(along: Row, hot: Row, colormap: str) -> NDArray[np.uint8]:
    """Turn from ink to the heat's own colour, or where that is too light for a line to the nearest that is not."""
    table = COLORMAPS[colormap]
    dark = np.flatnonzero(oklab_from_srgb(table)[:, 0] <= _LIGHTEST)
    entries = np.rint(unit(along) * 255).astype(np.intp)
    nearest = dark[np.abs(entries[:, None] - dark).argmin(1)]
    mixed = (1 - hot[:, None]) * np.array(INK) + hot[:, None] * table[nearest]
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def _path(samples: Row, size: Size, margin: float) -> list[tuple[float, float]]:
    """Lead a line through the samples; where several fall on one pixel, through the lowest and the highest of them."""
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


def _span(heat: Samples, width: int, look: Look) -> Image.Image:
    """Draw a bracket over the hottest span and say which samples it holds."""
    numbers = HOTTEST.scaled(look.scale)
    page = sheet(width, numbers.leading + 9 * look.scale)
    span = hottest_span(heat, look.cold)
    if span is None:
        return page
    left, right = span[0] / len(heat) * width, (span[1] + 1) / len(heat) * width
    said = f"hottest: samples {span[0]:,} to {span[1]:,}" if span[1] > span[0] else f"hottest: sample {span[0]:,}"
    start = round(min(max((left + right - numbers.width(said)) / 2, 0), width - numbers.width(said) - 1))
    numbers.draw(page, start, 0, said)
    top, bottom = numbers.leading + 3.0 * look.scale, float(page.height)
    path = [(left, bottom), (left, top), (right, top), (right, bottom)]
    page.paste(INK, (0, 0), stroke(path, page.size, 1.6 * look.scale))
    return page


def _axis(count: int, at: Sequence[int], width: int, look: Look) -> Image.Image:
    numbers = NUMBERS.scaled(look.scale)
    page = sheet(width, numbers.leading + 6 * look.scale)
    page.paste(LEADER, (0, 0, width, look.scale))
    for tick, across in zip(ticks(count, 12), at, strict=True):
        page.paste(LEADER, (across, 0, across + look.scale, 5 * look.scale))
        said = f"{tick:,}"
        start = min(max(across - numbers.width(said) // 2, 0), width - numbers.width(said) - 1)
        numbers.draw(page, start, 6 * look.scale, said)
    return page


def _range(samples: Row) -> str:
    return f"{samples.min():.3g} to {samples.max():.3g}"


def _beside_gutter(name: str, below: str, block: Image.Image, look: Look) -> Image.Image:
    """Put a block to the right of what it is called and of a smaller line of numbers."""
    gutter = GUTTER * look.scale
    texts = [(name, HEADING.scaled(look.scale)), (below, NUMBERS.scaled(look.scale))]
    lines = [
        lines_of_text([lettering.shorten(text, gutter - 8)], lettering, gutter) for text, lettering in texts if text
    ]
    return beside([stack(lines) if lines else sheet(gutter, 1), block])
