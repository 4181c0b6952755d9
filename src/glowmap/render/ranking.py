"""A classifier's most likely classes, as bars."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.errors import OutputError
from glowmap.render.blocks import Size, sheet
from glowmap.render.colormap import COLORMAPS
from glowmap.render.panels import Tile, shown_width
from glowmap.render.style import Colour, Lettering

_NAME = Lettering(13, ink=(52, 55, 61))
_HIGHLIGHTED = Lettering(13, bold=True)
_BAR: Colour = (150, 158, 172)
_TRACK: Colour = (235, 237, 240)
_LOWEST, _HIGHEST = 30, 64  # pixels from one class to the next


def ranking_tile(
    names: Sequence[str],
    probabilities: NDArray[np.floating[Any]],
    size: Size,
    heading: str = "",
    *,
    highlighted: int | None = None,
    top: int = 5,
) -> Tile:
    """Draw a classifier's most likely classes as bars, in a tile shaped like a picture of ``size`` (columns, rows).

    ``probabilities`` has one entry in [0, 1] for each name. The class ``highlighted`` takes the last bar, with its rank, where
    it is not among the ``top``. Raises OutputError where names, probabilities or ``highlighted`` do not match.
    """
    _check(names, probabilities, highlighted)
    texts = [str(name) for name in names]
    draw = partial(_bars, names=texts, probabilities=probabilities, highlighted=highlighted, top=top)
    width = shown_width(size)
    return Tile(draw((width, max(1, round(width * size[1] / size[0]))), 1), heading, draw=draw)


def _check(names: Sequence[str], probabilities: NDArray[np.floating[Any]], highlighted: int | None) -> None:
    if probabilities.shape != (len(names),) or not names:
        raise OutputError(
            f"a ranking has one probability per name, and this one has {len(names)} names and probabilities of shape "
            f"{probabilities.shape}; pass those of one image"
        )
    if not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-3):
        raise OutputError(
            "a ranking shows probabilities in [0, 1], and some of these lie outside; apply a softmax first"
        )
    if highlighted is not None and not 0 <= highlighted < len(names):
        raise OutputError(f"the class to highlight is {highlighted}, and there are {len(names)} names; count from 0")


def _bars(
    size: Size,
    scale: int,
    *,
    names: Sequence[str],
    probabilities: NDArray[np.floating[Any]],
    highlighted: int | None,
    top: int,
) -> Image.Image:
    """Draw the ``top`` classes, each with its name, probability and bar."""
    block = sheet(*size)
    order = np.argsort(-probabilities, kind="stable").tolist()
    classes = order[: max(1, min(top, len(order), size[1] // (_LOWEST * scale)))]
    if highlighted is not None and highlighted not in classes:
        classes[-1] = highlighted
    pitch = min(size[1] // len(classes), _HIGHEST * scale)
    for number, index in enumerate(classes):
        rank = order.index(index) + 1
        name = names[index] if rank == number + 1 else f"{names[index]} (#{rank})"
        probability = min(float(probabilities[index]), 1.0)
        entry = _entry(name, probability, (size[0], pitch), is_highlighted=index == highlighted, scale=scale)
        block.paste(entry, (0, number * pitch))
    return block


def _entry(name: str, probability: float, size: Size, *, is_highlighted: bool, scale: int) -> Image.Image:
    block = sheet(*size)
    lettering = (_HIGHLIGHTED if is_highlighted else _NAME).scaled(scale)
    percent = _percent(probability)
    right = block.width - lettering.width(percent)
    lettering.draw(block, 0, 0, lettering.shorten(name, right - lettering.size))
    lettering.draw(block, right, 0, percent)
    top = lettering.leading + scale
    bottom = top + size[1] // 6
    block.paste(_TRACK, (0, top, block.width, bottom))
    block.paste(_highlight() if is_highlighted else _BAR, (0, top, round(probability * block.width), bottom))
    return block


def _highlight() -> Colour:
    red, green, blue = COLORMAPS["glow"][170].tolist()
    return red, green, blue


def _percent(probability: float) -> str:
    return "<0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"
