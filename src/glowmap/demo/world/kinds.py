"""Kinds of objects: their sizes, how they are drawn, and their registry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from glowmap.demo.world.canvas import Brush, Colour
from glowmap.errors import InputError
from glowmap.registry import Registry

Draw: TypeAlias = Callable[[Brush, np.random.Generator], None]


@dataclass(frozen=True)
class Kind:
    """A kind of object: its range of heights in metres, its width in units of its height, and its drawing function."""

    name: str
    height: tuple[float, float]
    width: float
    draw: Draw


KINDS: Registry[Kind] = Registry("kind of object", InputError)


def kind(*, height: tuple[float, float], width: float) -> Callable[[Draw], Draw]:
    """Register a drawing function under its name."""

    def register(draw: Draw) -> Draw:
        KINDS.register(draw.__name__, Kind(draw.__name__, height, width, draw))
        return draw

    return register


def random_colour(rng: np.random.Generator, palette: tuple[Colour, ...], spread: float = 14.0) -> Colour:
    """Return a random colour of a palette, slightly varied."""
    base = palette[int(rng.integers(len(palette)))]
    return tuple(
        min(max(round(channel + change), 4), 250)
        for channel, change in zip(base, rng.normal(0, spread, 3), strict=True)
    )


def tinted(colour: Colour, factor: float) -> Colour:
    """Lighten (factor above 1) or darken (below 1) a colour."""
    red, green, blue = colour[:3]
    return min(round(red * factor), 255), min(round(green * factor), 255), min(round(blue * factor), 255)


def detail(colour: Colour) -> Colour:
    """Return a colour for details inside an object, with an alpha value so that they do not change the instance of a pixel."""
    return (*colour[:3], 255)
