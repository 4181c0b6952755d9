"""Cars, buses and bicycles."""

import numpy as np

from glowmap.demo.world.canvas import Brush, Colour
from glowmap.demo.world.kinds import detail, kind, random_colour, tinted

_LACQUERS = (
    (196, 40, 36), (36, 84, 168), (232, 232, 228), (44, 46, 52), (168, 172, 178), (226, 170, 40), (42, 120, 84),
    (120, 44, 92), (214, 108, 46), (96, 150, 190),
)  # fmt: skip
# glass and rims have an alpha value, as details inside an object
_GLASS, _TYRE, _RIM = (46, 62, 78, 255), (26, 26, 30), (160, 164, 170, 255)
_SKY_IN_GLASS = (200, 222, 240, 70)


@kind(height=(1.4, 1.7), width=2.8)
def car(brush: Brush, rng: np.random.Generator) -> None:
    """Draw a car from the side, or with probability 1/4 from the front or from behind."""
    colour = random_colour(rng, _LACQUERS)
    if rng.random() < 0.75:
        _car_from_the_side(brush, rng, colour)
    else:
        _car_from_the_front(brush, colour, behind=rng.random() < 0.5)


def _car_from_the_side(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    half = rng.uniform(1.25, 1.45)
    rear, front = rng.uniform(-1.3, -0.75), rng.uniform(0.5, 0.75)  # ends of the roof
    brush.shadow(-half - 0.1, half + 0.1)
    roof = [
        (rear - 0.25, 0.56),
        (rear, 0.97),
        (rear + 0.3, 1.02),
        (front - 0.35, 1.0),
        (front, 0.9),
        (front + 0.4, 0.56),
    ]
    brush.shape(roof, colour, smooth=1)
    glass = [(rear - 0.08, 0.6), (rear + 0.12, 0.9), (front - 0.3, 0.92), (front - 0.04, 0.85), (front + 0.2, 0.6)]
    brush.shape(glass, _GLASS, smooth=1)
    middle = (rear + front) / 2
    brush.shape([(middle - 0.5, 0.6), (middle - 0.1, 0.9), (middle + 0.15, 0.9), (middle - 0.25, 0.6)], _SKY_IN_GLASS)
    brush.line([(middle + 0.05, 0.58), (middle + 0.02, 0.94)], 0.07, detail(colour))
    body = [
        (-half, 0.22),
        (-half, 0.58),
        (rear, 0.66),
        (front + 0.3, 0.64),
        (half - 0.12, 0.54),
        (half, 0.4),
        (half, 0.22),
    ]
    brush.shape(body, colour, smooth=2)
    brush.shade([(-half, 0.2), (half, 0.2), (half, 0.38), (-half, 0.36)], -0.35)
    brush.shade([(-half, 0.52), (half - 0.2, 0.5), (half - 0.2, 0.62), (-half, 0.64)], 0.3)
    brush.line([(middle + 0.05, 0.6), (middle + 0.05, 0.28)], 0.015, detail(tinted(colour, 0.6)))
    brush.box(middle - 0.2, 0.52, middle - 0.04, 0.55, detail(tinted(colour, 0.7)))  # a handle
    brush.disc(half - 0.09, 0.46, 0.07, (250, 240, 196))
    brush.box(-half + 0.02, 0.44, -half + 0.1, 0.56, (190, 30, 30))
    for u in (-half * 0.6, half * 0.6):
        wheel(brush, u, 0.24)


def wheel(brush: Brush, u: float, radius: float) -> None:
    """Draw a motor vehicle's wheel on the ground."""
    brush.disc(u, radius + 0.03, radius * 1.18, (18, 18, 20))
    brush.disc(u, radius, radius, detail(_TYRE))
    brush.disc(u, radius, radius * 0.58, _RIM)
    brush.disc(u, radius, radius * 0.2, (90, 94, 100, 255))


def _car_from_the_front(brush: Brush, colour: Colour, *, behind: bool) -> None:
    brush.shadow(-0.72, 0.72)
    for u in (-0.5, 0.5):
        brush.box(u - 0.12, 0.0, u + 0.12, 0.3, _TYRE)
    brush.shape([(-0.56, 0.5), (-0.44, 0.96), (-0.3, 1.02), (0.3, 1.02), (0.44, 0.96), (0.56, 0.5)], colour, smooth=1)
    brush.shape([(-0.46, 0.58), (-0.37, 0.92), (0.37, 0.92), (0.46, 0.58)], _GLASS, smooth=1)
    brush.shape([(-0.3, 0.58), (-0.1, 0.9), (0.1, 0.9), (-0.1, 0.58)], _SKY_IN_GLASS)
    body = [(-0.66, 0.16), (-0.66, 0.54), (-0.52, 0.62), (0.52, 0.62), (0.66, 0.54), (0.66, 0.16)]
    brush.shape(body, colour, smooth=1)
    brush.shade([(-0.66, 0.14), (0.66, 0.14), (0.66, 0.32), (-0.66, 0.32)], -0.4)
    brush.box(-0.3, 0.24, 0.3, 0.38, detail(tinted(colour, 0.45)))
    brush.box(-0.16, 0.18, 0.16, 0.27, (236, 236, 226, 255))
    for u in (-0.5, 0.5):
        brush.disc(u, 0.46, 0.09, (196, 32, 30) if behind else (252, 244, 206), tall=0.8)


@kind(height=(2.9, 3.3), width=2.6)
def bus(brush: Brush, rng: np.random.Generator) -> None:
    """Draw a bus from the side, or with probability 1/4 from the front."""
    colour = random_colour(
        rng, ((214, 44, 40), (238, 190, 44), (42, 110, 180), (236, 238, 236), (60, 150, 96), (236, 120, 40))
    )
    if rng.random() < 0.75:
        _bus_from_the_side(brush, rng, colour)
    else:
        _bus_from_the_front(brush, colour)


def _bus_from_the_side(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    half, stripe = rng.uniform(1.1, 1.3), random_colour(rng, ((240, 240, 236), (40, 44, 60), (230, 180, 60)))
    brush.shadow(-half - 0.05, half + 0.05, depth=0.06)
    roof = [(-half, 0.94), (-half + 0.05, 1.0), (half - 0.14, 1.0), (half - 0.04, 0.97), (half, 0.8)]
    brush.shape([(-half, 0.1), *roof, (half, 0.13), (half - 0.04, 0.1)], colour)
    brush.box(-half + 0.02, 0.3, half - 0.02, 0.4, detail(stripe))
    count = int(rng.integers(4, 7))
    pitch = (2 * half - 0.5) / count
    for i in range(count):
        left = -half + 0.07 + i * pitch
        brush.box(left, 0.5, left + pitch * 0.86, 0.84, _GLASS)
        brush.shape([(left + 0.02, 0.5), (left + pitch * 0.3, 0.84), (left + pitch * 0.5, 0.84), (left + pitch * 0.2, 0.5)],
                    _SKY_IN_GLASS)  # fmt: skip
    brush.box(half - 0.36, 0.14, half - 0.12, 0.84, detail(tinted(_GLASS, 0.8)))  # the door
    brush.line([(half - 0.24, 0.14), (half - 0.24, 0.84)], 0.02, detail(colour))
    brush.box(half - 0.5, 0.88, half - 0.12, 0.96, (30, 30, 34, 255))
    brush.box(half - 0.47, 0.9, half - 0.2, 0.94, (250, 180, 60, 255))  # its destination
    brush.shade([(-half, 0.08), (half, 0.08), (half, 0.26), (-half, 0.26)], -0.35)
    brush.shade([(-half, 0.9), (half, 0.9), (half, 1.0), (-half, 1.0)], 0.25)
    for u in (-half * 0.62, half * 0.5):
        wheel(brush, u, 0.14)


def _bus_from_the_front(brush: Brush, colour: Colour) -> None:
    brush.shadow(-0.48, 0.48, depth=0.06)
    for u in (-0.28, 0.28):
        brush.box(u - 0.07, 0.0, u + 0.07, 0.2, _TYRE)
    brush.shape([(-0.42, 0.08), (-0.42, 0.92), (-0.36, 1.0), (0.36, 1.0), (0.42, 0.92), (0.42, 0.08)], colour)
    brush.box(-0.36, 0.42, 0.36, 0.82, _GLASS)
    brush.shape([(-0.3, 0.42), (-0.1, 0.82), (0.06, 0.82), (-0.14, 0.42)], _SKY_IN_GLASS)
    brush.box(-0.28, 0.86, 0.28, 0.94, (30, 30, 34, 255))
    brush.box(-0.2, 0.88, 0.16, 0.92, (250, 180, 60, 255))
    brush.shade([(-0.42, 0.06), (0.42, 0.06), (0.42, 0.2), (-0.42, 0.2)], -0.35)
    for u in (-0.3, 0.3):
        brush.disc(u, 0.26, 0.05, (252, 244, 206, 255))


@kind(height=(1.1, 1.25), width=1.6)
def bicycle(brush: Brush, rng: np.random.Generator) -> None:
    """Draw a bicycle. The discs of its wheels belong to it, as in common data sets."""
    colour = random_colour(
        rng, ((30, 110, 180), (200, 40, 40), (40, 44, 50), (240, 200, 60), (60, 160, 110), (150, 70, 160))
    )
    brush.shadow(-0.85, 0.85, depth=0.05, level=-0.35)
    for u in (-0.5, 0.5):
        brush.disc(u, 0.33, 0.34, (34, 34, 38))
        brush.disc(u, 0.33, 0.27, (188, 190, 192, 255))
        for turn in rng.uniform(0, np.pi) + np.arange(4) * np.pi / 4:
            across, up = 0.27 * np.cos(turn), 0.27 * np.sin(turn)
            brush.line([(u - across, 0.33 - up), (u + across, 0.33 + up)], 0.015, (110, 112, 118, 255))
        brush.disc(u, 0.33, 0.05, (60, 60, 66, 255))
    pedal, saddle, fork, hub = (-0.02, 0.3), (-0.2, 0.78), (0.36, 0.8), (0.5, 0.33)
    for points in ([(-0.5, 0.33), pedal, fork, saddle, pedal], [(-0.5, 0.33), saddle], [fork, hub]):
        brush.line(points, 0.075, colour)
    brush.line([(-0.22, 0.76), (-0.24, 0.88)], 0.05, (50, 50, 54))
    brush.line([(-0.36, 0.9), (-0.1, 0.9)], 0.09, (40, 36, 34))
    brush.line([(0.36, 0.78), (0.32, 0.95), (0.5, 1.0)], 0.06, (50, 50, 54))
    brush.disc(*pedal, 0.07, (90, 92, 98))
