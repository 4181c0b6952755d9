"""People, trees and dogs."""

import numpy as np

from glowmap.demo.world.canvas import Brush, Colour
from glowmap.demo.world.kinds import detail, kind, random_colour, tinted

_SKINS = ((242, 206, 178), (224, 178, 140), (180, 128, 92), (128, 86, 60), (88, 58, 42))
_CLOTHES = (
    (190, 50, 50), (50, 90, 160), (240, 236, 226), (60, 62, 70), (220, 170, 60), (70, 130, 90), (140, 80, 140),
    (230, 130, 70), (120, 160, 190),
)  # fmt: skip


@kind(height=(1.55, 1.9), width=0.5)
def person(brush: Brush, rng: np.random.Generator) -> None:
    """Draw a person who stands or walks."""
    skin, top, trousers = random_colour(rng, _SKINS, 8.0), random_colour(rng, _CLOTHES), random_colour(rng, _CLOTHES)
    hair = random_colour(rng, ((40, 30, 26), (90, 60, 36), (200, 160, 90), (150, 150, 152), (120, 50, 30)), 8.0)
    step, swing = rng.uniform(0.02, 0.2), rng.uniform(0.02, 0.16)
    brush.shadow(-0.25, 0.3, depth=0.035)
    for side, shading in ((-1, 0.72), (1, 1.0)):  # the far leg and arm are darker
        foot = side * step
        brush.line([(0.0, 0.5), (foot * 0.6, 0.26), (foot, 0.03)], 0.11, tinted(trousers, shading))
        brush.line([(foot - 0.01, 0.025), (foot + 0.07, 0.02)], 0.05, (40, 34, 32))
    _arm(brush, -swing, skin, tinted(top, 0.72))
    torso = [(-0.12, 0.46), (-0.13, 0.66), (-0.11, 0.83), (0.11, 0.83), (0.13, 0.66), (0.12, 0.46)]
    brush.shape(torso, top, smooth=1)
    brush.shade([(-0.13, 0.46), (-0.04, 0.46), (-0.04, 0.82), (-0.13, 0.82)], -0.25)
    _arm(brush, swing, skin, tinted(top, 0.9))
    brush.line([(0.0, 0.82), (0.0, 0.88)], 0.07, tinted(skin, 0.85))
    brush.disc(0.005, 0.92, 0.075, hair, tall=1.12)
    brush.disc(0.02, 0.905, 0.062, skin, tall=1.1)
    if rng.random() < 0.35:  # long hair
        brush.shape([(-0.08, 0.78), (-0.08, 0.94), (-0.02, 0.96), (-0.02, 0.8)], hair, smooth=1)
    if rng.random() < 0.3:
        brush.shape(
            [(-0.2, 0.56), (-0.2, 0.78), (-0.1, 0.8), (-0.1, 0.55)], random_colour(rng, _CLOTHES), smooth=1
        )  # a bag


def _arm(brush: Brush, swing: float, skin: Colour, sleeve: Colour) -> None:
    brush.line([(0.02, 0.79), (swing * 0.7, 0.62), (swing * 1.5, 0.49)], 0.065, sleeve)
    brush.disc(swing * 1.55, 0.465, 0.033, skin)


@kind(height=(4.5, 8.0), width=0.7)
def tree(brush: Brush, rng: np.random.Generator) -> None:
    """Draw a broad-leaved tree, or with probability 1/4 a conifer."""
    bark = random_colour(rng, ((92, 68, 48), (112, 92, 74), (74, 58, 46)), 8.0)
    brush.shadow(-0.3, 0.34, depth=0.03)
    brush.shape([(-0.05, 0.0), (-0.035, 0.6), (0.035, 0.6), (0.055, 0.0)], bark)
    brush.shade([(-0.05, 0.0), (-0.01, 0.0), (-0.01, 0.5), (-0.04, 0.5)], -0.3)
    if rng.random() < 0.25:
        _needles(brush, random_colour(rng, ((34, 78, 58), (40, 92, 60)), 8.0))
    else:
        autumn = ((196, 132, 46), (186, 92, 44))
        greens = ((74, 128, 56), (96, 146, 62), (58, 108, 62), (120, 150, 70))
        _leaves(brush, rng, random_colour(rng, autumn if rng.random() < 0.15 else greens, 10.0))


def _needles(brush: Brush, colour: Colour) -> None:
    for i in range(4):
        low, half = 0.16 + 0.19 * i, 0.32 - 0.065 * i
        brush.shape([(-half, low), (0.0, low + 0.32), (half, low), (0.0, low + 0.04)], tinted(colour, 0.8 + 0.12 * i))


def _leaves(brush: Brush, rng: np.random.Generator, colour: Colour) -> None:
    count = int(rng.integers(8, 13))
    turn = np.arange(count) * 2.399 + rng.uniform(0, 6)  # the golden angle spreads them evenly
    reach = 0.21 * np.sqrt((np.arange(count) + 0.5) / count)
    clusters = list(zip((reach * np.cos(turn) * 1.15).tolist(), (0.7 + reach * np.sin(turn)).tolist(), strict=True))
    for u, v in clusters:
        brush.disc(u, v, rng.uniform(0.11, 0.15), tinted(colour, 0.72))
    for u, v in clusters:
        brush.disc(u + 0.015, v + 0.02, rng.uniform(0.07, 0.11), detail(tinted(colour, rng.uniform(0.88, 1.06))))
    for u, v in clusters:
        if v > 0.66:
            brush.disc(u + 0.03, v + 0.04, rng.uniform(0.03, 0.06), detail(tinted(colour, rng.uniform(1.1, 1.3))))


@kind(height=(0.85, 1.05), width=1.5)
def dog(brush: Brush, rng: np.random.Generator) -> None:
    """Draw a dog that stands or walks."""
    coat = random_colour(
        rng, ((150, 100, 60), (60, 48, 42), (224, 196, 150), (236, 232, 224), (190, 130, 70), (120, 112, 106)), 10.0
    )
    ear, step = tinted(coat, 0.6), rng.uniform(0.0, 0.1)
    brush.shadow(-0.65, 0.65, depth=0.06)
    for u, side, shading in ((-0.42, 1, 0.7), (0.3, -1, 0.7), (-0.36, -1, 0.95), (0.38, 1, 0.95)):
        brush.line([(u, 0.45), (u + side * step * 0.4, 0.22), (u + side * step, 0.03)], 0.11, tinted(coat, shading))
    brush.line([(-0.5, 0.6), (-0.66, 0.76), (-0.7, 0.94)], 0.09, tinted(coat, 0.9))  # the tail
    brush.shape(
        [(-0.56, 0.4), (-0.54, 0.7), (0.1, 0.68), (0.5, 0.74), (0.52, 0.44), (0.2, 0.36), (-0.2, 0.42)], coat, smooth=2
    )
    brush.shade([(-0.5, 0.38), (0.5, 0.38), (0.5, 0.5), (-0.5, 0.5)], -0.3)
    brush.shape([(0.34, 0.6), (0.42, 0.9), (0.62, 0.94), (0.62, 0.66)], coat, smooth=1)  # the neck
    brush.disc(0.58, 0.86, 0.17, coat, tall=0.9)
    brush.shape([(0.62, 0.74), (0.62, 0.9), (0.86, 0.84), (0.88, 0.76)], tinted(coat, 0.92), smooth=1)
    brush.disc(0.86, 0.82, 0.04, (24, 20, 20))
    brush.disc(0.64, 0.9, 0.028, (24, 20, 20))
    brush.shape([(0.4, 0.98), (0.54, 1.0), (0.54, 0.82), (0.42, 0.72)], ear, smooth=1)
    if rng.random() < 0.5:
        brush.line([(0.4, 0.72), (0.58, 0.68)], 0.06, random_colour(rng, _CLOTHES))  # a collar
    if rng.random() < 0.3:
        brush.disc(rng.uniform(-0.3, 0.2), 0.58, 0.12, tinted(coat, 0.6))  # a spot
