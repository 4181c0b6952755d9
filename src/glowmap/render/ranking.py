"""What a classifier said, as bars."""

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
_ASKED = Lettering(13, bold=True)
_BAR: Colour = (150, 158, 172)
_TRACK: Colour = (235, 237, 240)
_LOWEST, _HIGHEST = 30, 64  # pixels from one class to the next


def ranking_tile(
    names: Sequence[str],
    probabilities: NDArray[np.floating[Any]],
    size: Size,
    heading: str = "",
    *,
    asked: int | None = None,
    top: int = 5,
    caption: tuple[str, ...] = (),
) -> Tile:
    """Draw a classifier's likeliest classes as bars, in a tile shaped like a picture of ``size`` (columns, rows).

    ``probabilities`` in [0, 1] has one entry per name. The class ``asked`` for is highlighted, and takes the last bar
    with its rank where it is not among the ``top``. OutputError where names, probabilities or ``asked`` do not match.
    """
    _check(names, probabilities, asked)
    draw = partial(_bars, [str(name) for name in names], probabilities, asked, top)
    width = shown_width(size)
    return Tile(draw((width, max(1, round(width * size[1] / size[0]))), 1), heading, caption, draw=draw)


def _check(names: Sequence[str], probabilities: NDArray[np.floating[Any]], asked: int | None) -> None:
    if probabilities.shape != (len(names),) or not names:
        raise OutputError(
            f"a ranking has one probability per name, and this one has {len(names)} names and probabilities of shape "
            f"{probabilities.shape}; pass those of one image"
        )
    if not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-3):
        raise OutputError(
            "a ranking shows probabilities in [0, 1], and some of these lie outside; apply a softmax first"
        )
    if asked is not None and not 0 <= asked < len(names):
        raise OutputError(f"the class asked for is {asked}, and there are {len(names)} names; count from 0")


def _bars(
    names: Sequence[str],
    probabilities: NDArray[np.floating[Any]],
    asked: int | None,
    top: int,
    size: Size,
    scale: int = 1,
) -> Image.Image:
    block = sheet(*size)
    order = np.argsort(-probabilities, kind="stable").tolist()
    shown = order[: max(1, min(top, len(order), size[1] // (_LOWEST * scale)))]
    if asked is not None and asked not in shown:
        shown[-1] = asked
    pitch = min(size[1] // len(shown), _HIGHEST * scale)
    for number, index in enumerate(shown):
        rank = order.index(index) + 1
        name = names[index] if rank == number + 1 else f"{names[index]} (#{rank})"
        probability = min(float(probabilities[index]), 1.0)
        entry = _entry(name, probability, (size[0], pitch), highlighted=index == asked, scale=scale)
        block.paste(entry, (0, number * pitch))
    return block


def _entry(name: str, probability: float, size: Size, *, highlighted: bool, scale: int) -> Image.Image:
    block = sheet(*size)
    lettering = (_ASKED if highlighted else _NAME).scaled(scale)
    percent = _percent(probability)
    right = block.width - lettering.width(percent)
    lettering.draw(block, 0, 0, lettering.shorten(name, right - lettering.size))
    lettering.draw(block, right, 0, percent)
    top = lettering.leading + scale
    bottom = top + size[1] // 6
    block.paste(_TRACK, (0, top, block.width, bottom))
    block.paste(_highlight() if highlighted else _BAR, (0, top, round(probability * block.width), bottom))
    return block


def _highlight() -> Colour:
    red, green, blue = COLORMAPS["glow"][170].tolist()
    return red, green, blue


def _percent(probability: float) -> str:
    return "<0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"
