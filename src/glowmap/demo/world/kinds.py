"""What a kind of object is: how tall it stands, what it takes to draw one, and the shelf that holds them all."""

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
    """A member of the shelf: its name, the heights in metres it comes in, its width in heights, and how it is drawn."""

    name: str
    height: tuple[float, float]
    width: float
    draw: Draw


KINDS: Registry[Kind] = Registry("kind of object", InputError)


def kind(*, height: tuple[float, float], width: float) -> Callable[[Draw], Draw]:
    """Put a drawing function on the shelf under its own name."""

    def put(draw: Draw) -> Draw:
        KINDS.register(draw.__name__, Kind(draw.__name__, height, width, draw))
        return draw

    return put


def painted(rng: np.random.Generator, palette: tuple[Colour, ...], spread: float = 14.0) -> Colour:
    """Take a colour of a palette and vary it a little."""
    base = palette[int(rng.integers(len(palette)))]
    return tuple(min(max(round(c + change), 4), 250) for c, change in zip(base, rng.normal(0, spread, 3), strict=True))


def tinted(colour: Colour, factor: float) -> Colour:
    """Lighten (factor above 1) or darken a colour."""
    red, green, blue = colour[:3]
    return min(round(red * factor), 255), min(round(green * factor), 255), min(round(blue * factor), 255)


def inside(colour: Colour) -> Colour:
    """Take a colour for what lies within an outline that is drawn already, and so owns nothing that is not owned."""
    return (*colour[:3], 255)
