"""Houses."""

import numpy as np

from glowmap.demo.world.canvas import Brush, Colour
from glowmap.demo.world.kinds import detail, kind, random_colour, tinted

_WALLS = (
    (214, 196, 160), (178, 104, 80), (226, 220, 206), (150, 158, 170), (206, 150, 110), (160, 176, 150), (196, 170, 190),
)  # fmt: skip
_ROOFS = ((150, 70, 52), (92, 84, 84), (120, 94, 76), (70, 80, 96))


@kind(height=(6.0, 11.0), width=1.1)
def house(brush: Brush, rng: np.random.Generator) -> None:
    """Draw a house with a gable, or with probability 0.35 one with a flat roof."""
    wall, roof = random_colour(rng, _WALLS), random_colour(rng, _ROOFS, 8.0)
    half, lit = rng.uniform(0.38, 0.58), rng.random() < 0.2
    flat = rng.random() < 0.35
    eaves = 0.94 if flat else rng.uniform(0.6, 0.72)
    brush.shadow(-half - 0.05, half + 0.08, depth=0.04)
    brush.box(-half, 0.0, half, eaves, wall)
    if flat:
        brush.box(-half - 0.03, eaves, half + 0.03, 1.0, tinted(wall, 0.75))
    else:
        chimney = rng.uniform(-0.2, 0.2)
        brush.box(chimney - 0.04, 0.75, chimney + 0.04, 1.0, tinted(roof, 0.8))
        brush.shape([(-half - 0.06, eaves), (-half * 0.55, 0.96), (half * 0.55, 0.96), (half + 0.06, eaves)], roof)
        brush.shade([(0.0, eaves), (half * 0.3, 0.96), (half * 0.55, 0.96), (half + 0.06, eaves)], -0.2)
    for v in np.arange(0.06, eaves, 0.055).tolist():  # courses of brick or board
        brush.line([(-half, v), (half, v)], 0.006, (*tinted(wall, 0.6), 70))
    brush.shade([(-half, 0.0), (-half + 0.12, 0.0), (-half + 0.12, eaves), (-half, eaves)], -0.22)
    brush.shade([(-half, eaves - 0.05), (half, eaves - 0.05), (half, eaves), (-half, eaves)], -0.3)
    glass = (250, 214, 130) if lit else (64, 80, 98)
    _openings(brush, rng, half, eaves, glass=detail(glass), frame=detail(tinted(wall, 1.22)))


def _openings(
    brush: Brush, rng: np.random.Generator, half: float, eaves: float, *, glass: Colour, frame: Colour
) -> None:
    across, floors = int(rng.integers(2, 5)), max(2, round(eaves / 0.24))
    door = int(rng.integers(across))
    pitch, storey = 2 * half / across, eaves / floors
    width, height = pitch * 0.26, storey * 0.3
    for floor in range(floors):
        for number in range(across):
            u, v = -half + (number + 0.5) * pitch, (floor + 0.52) * storey
            if floor == 0 and number == door:
                brush.box(u - width, 0.0, u + width, storey * 0.8, (84, 58, 44, 255))
                brush.disc(u + width * 0.6, storey * 0.36, 0.008, (220, 200, 120, 255))
                continue
            brush.box(u - width - 0.012, v - height - 0.012, u + width + 0.012, v + height + 0.012, frame)
            brush.box(u - width, v - height, u + width, v + height, glass)
            brush.shape([(u - width, v - height), (u, v + height), (u + width * 0.6, v + height)], (220, 234, 246, 60))
            brush.line([(u, v - height), (u, v + height)], 0.012, frame)
