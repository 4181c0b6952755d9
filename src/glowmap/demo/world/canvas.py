"""The canvas of the demo's world: colours, shade and the instance of every pixel, drawn together.

Coordinates are in units of the picture's height, x to the right and y down, so that a scene is the same at any resolution.
Everything is drawn at a multiple of the resolution; reducing it smooths the edges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour: TypeAlias = tuple[int, ...]  # red, green, blue and, optionally, alpha, from 0 to 255
Point: TypeAlias = tuple[float, float]
Points: TypeAlias = Sequence[Point]
BACKGROUND = 0  # the instance number of pixels that show no object
_NEUTRAL = 128  # the shade that does not change a colour
_CIRCLE = tuple((math.cos(turn * math.pi / 10), math.sin(turn * math.pi / 10)) for turn in range(20))


class Canvas:
    """Three pictures that are drawn together: colours, a soft shade over them, and instance numbers."""

    def __init__(self, rows: int, columns: int, finer: int = 2) -> None:
        self.rows, self.columns, self._finer = rows, columns, finer
        size = (columns * finer, rows * finer)
        self._colour, self._instance = Image.new("RGB", size), Image.new("L", size, BACKGROUND)
        self._shade = Image.new("L", (columns, rows), _NEUTRAL)
        self._pen = ImageDraw.Draw(self._colour, "RGBA")  # the mode in which translucent colours mix
        self._instance_pen, self._shade_pen = ImageDraw.Draw(self._instance), ImageDraw.Draw(self._shade)

    @property
    def aspect(self) -> float:
        """The picture's width in units of its height: the largest x."""
        return self.columns / self.rows

    def polygon(self, points: Points, colour: Colour, instance: int | None = None) -> None:
        """Fill a polygon. With an instance number, its pixels take that number and lose their earlier shade."""
        fine = _flat(points, self.rows * self._finer)
        self._pen.polygon(fine, fill=colour)
        if instance is not None:
            self._instance_pen.polygon(fine, fill=instance)
            self._shade_pen.polygon(_flat(points, self.rows), fill=_NEUTRAL)

    def ellipse(
        self, x: float, y: float, radii: tuple[float, float], colour: Colour, instance: int | None = None
    ) -> None:
        """Fill an ellipse around (x, y), as :meth:`polygon` does."""
        corners = [(x - radii[0], y - radii[1]), (x + radii[0], y + radii[1])]
        fine = _flat(corners, self.rows * self._finer)
        self._pen.ellipse(fine, fill=colour)
        if instance is not None:
            self._instance_pen.ellipse(fine, fill=instance)
            self._shade_pen.ellipse(_flat(corners, self.rows), fill=_NEUTRAL)

    def line(self, points: Points, width: float, colour: Colour, instance: int | None = None) -> None:
        """Draw a line with round corners, at least one pixel of the finer grid wide."""
        fine = _flat(points, self.rows * self._finer)
        broad = max(1, round(width * self.rows * self._finer))
        self._pen.line(fine, fill=colour, width=broad, joint="curve")
        if instance is not None:
            self._instance_pen.line(fine, fill=instance, width=broad, joint="curve")

    def shade(self, points: Points, level: float) -> None:
        """Lighten (level above 0) or darken (below 0) a polygon with soft edges: -1 is black, 1 doubles the light."""
        self._shade_pen.polygon(_flat(points, self.rows), fill=round(_NEUTRAL * (1 + level)))

    def gradient(self, top: float, bottom: float, upper: Colour, lower: Colour) -> None:
        """Fill a horizontal band with a gradient from one colour to another."""
        first, last = (round(edge * self.rows * self._finer) for edge in (top, bottom))
        steps = np.linspace(np.array(upper[:3]), np.array(lower[:3]), max(last - first, 1))
        band = Image.fromarray(np.rint(steps).astype(np.uint8)[:, None])
        self._colour.paste(band.resize((self._colour.width, band.height), Image.Resampling.NEAREST), (0, first))

    def finished(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return the shaded colours in [0, 1], rows x columns x 3, and the instance numbers, rows x columns."""
        colours = np.asarray(self._colour.reduce(self._finer), dtype=np.float32) / 255
        soft = self._shade.filter(ImageFilter.BoxBlur(self.rows / 90)).filter(ImageFilter.BoxBlur(self.rows / 90))
        shade = np.asarray(soft, dtype=np.float32)[..., None] / _NEUTRAL
        middle = self._finer // 2
        return np.asarray(colours * shade, dtype=np.float32), np.asarray(self._instance)[
            middle :: self._finer, middle :: self._finer
        ].copy()


@dataclass(frozen=True)
class Brush:
    """Draws one object in units of its height: u to the right and v up from the middle of its foot."""

    canvas: Canvas
    instance: int
    x: float
    y: float
    size: float
    mirrored: bool = False
    haze: tuple[Colour, float] = ((200, 210, 220), 0.0)  # the colour of the air, and its share in the object's colours

    def shape(self, points: Points, colour: Colour, *, smooth: int = 0) -> None:
        """Fill a polygon, its corners cut ``smooth`` times. Colours with an alpha value do not change the instance."""
        outline = points
        for _ in range(smooth):
            outline = _corners_cut(outline)
        self.canvas.polygon(self._to_canvas(outline), self._in_haze(colour), self._instance_of(colour))

    def disc(self, u: float, v: float, radius: float, colour: Colour, *, tall: float = 1.0) -> None:
        """Fill a disc, ``tall`` times as high as wide."""
        ((x, y),) = self._to_canvas([(u, v)])
        radii = (radius * self.size, radius * self.size * tall)
        self.canvas.ellipse(x, y, radii, self._in_haze(colour), self._instance_of(colour))

    def box(self, left: float, bottom: float, right: float, top: float, colour: Colour) -> None:
        """Fill an upright rectangle."""
        self.shape([(left, bottom), (right, bottom), (right, top), (left, top)], colour)

    def line(self, points: Points, width: float, colour: Colour) -> None:
        """Draw a line of a width in units of the object's height."""
        self.canvas.line(self._to_canvas(points), width * self.size, self._in_haze(colour), self._instance_of(colour))

    def shade(self, points: Points, level: float) -> None:
        """Lighten or darken a polygon, as :meth:`Canvas.shade` does."""
        self.canvas.shade(self._to_canvas(points), level)

    def shadow(self, left: float, right: float, *, depth: float = 0.1, level: float = -0.45) -> None:
        """Draw a soft shadow on the ground. It comes before the object."""
        middle, half = (left + right) / 2, (right - left) / 2
        self.shade([(middle + half * across, depth * down) for across, down in _CIRCLE], level)

    def _to_canvas(self, points: Points) -> list[Point]:
        across = -self.size if self.mirrored else self.size
        return [(self.x + across * u, self.y - self.size * v) for u, v in points]

    def _in_haze(self, colour: Colour) -> Colour:
        (red, green, blue), share = self.haze
        rest = 1 - share
        mixed = (round(colour[0] * rest + red * share), round(colour[1] * rest + green * share))
        return (*mixed, round(colour[2] * rest + blue * share), *colour[3:])

    def _instance_of(self, colour: Colour) -> int | None:
        return self.instance if len(colour) == 3 else None


def _flat(points: Points, scale: int) -> list[float]:
    # for so few numbers plain Python is faster than arrays
    return [coordinate * scale for point in points for coordinate in point]


def _corners_cut(points: Points) -> list[Point]:
    """Cut every corner of a polygon at a quarter of its edges (Chaikin 1974). Two cuts look round."""
    cut = []
    for (x, y), (next_x, next_y) in zip(points, [*points[1:], points[0]], strict=True):
        cut.append((0.75 * x + 0.25 * next_x, 0.75 * y + 0.25 * next_y))
        cut.append((0.25 * x + 0.75 * next_x, 0.25 * y + 0.75 * next_y))
    return cut
