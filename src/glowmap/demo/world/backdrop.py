"""The backdrop of a street: sky, hills, ground, and the light over all of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.demo.world.canvas import BACKGROUND, Canvas, Colour
from glowmap.demo.world.kinds import random_colour, tinted

# colours of the upper sky, of the sky at the horizon, and of the light
_DAYS = (
    ((92, 150, 214), (206, 226, 240), (1.0, 1.0, 1.0)),
    ((128, 162, 196), (216, 222, 226), (0.95, 0.98, 1.02)),
    ((150, 156, 164), (206, 208, 210), (0.86, 0.88, 0.9)),
    ((88, 112, 170), (244, 196, 150), (1.06, 0.95, 0.84)),
    ((58, 66, 116), (226, 140, 110), (0.86, 0.74, 0.76)),
    ((110, 170, 226), (236, 240, 236), (1.08, 1.06, 1.0)),
)
_GRASS = ((104, 140, 76), (130, 146, 84), (88, 122, 72), (150, 142, 98))
_PAVEMENTS = ((168, 164, 158), (150, 150, 154), (184, 172, 152))
_ROADS = ((92, 94, 100), (78, 80, 86), (110, 108, 106))


@dataclass(frozen=True)
class Backdrop:
    """A place and an hour. Edges from far to near are shares of the picture's height."""

    horizon: float
    pavement: float  # far edge of the far pavement
    road: float
    kerb: float  # near edge of the road
    camera: float  # height above the ground in metres
    sky: tuple[Colour, Colour]
    grounds: tuple[Colour, Colour, Colour]  # grass, pavement, road
    light: tuple[float, float, float]
    haze: float
    noise: float
    seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Backdrop":
        """Draw a random place and hour."""
        horizon = rng.uniform(0.34, 0.44)
        pavement = horizon + rng.uniform(0.06, 0.1)
        road = pavement + rng.uniform(0.05, 0.08)
        above, below, light = _DAYS[int(rng.integers(len(_DAYS)))]
        exposure = rng.uniform(0.82, 1.1)
        return cls(
            horizon,
            pavement,
            road,
            road + rng.uniform(0.22, 0.3),
            rng.uniform(2.1, 2.8),
            (random_colour(rng, (above,), 8.0), random_colour(rng, (below,), 6.0)),
            (random_colour(rng, _GRASS, 8.0), random_colour(rng, _PAVEMENTS, 6.0), random_colour(rng, _ROADS, 6.0)),
            (light[0] * exposure, light[1] * exposure, light[2] * exposure),
            rng.uniform(0.0, 0.5) ** 2,
            rng.uniform(0.004, 0.03),
            int(rng.integers(2**31)),
        )

    @property
    def air(self) -> Colour:
        """The colour that distant objects fade to."""
        return self.sky[1]

    def metre_at(self, y: float) -> float:
        """Return the length of a metre at y, as a share of the picture's height: 0 at the horizon."""
        return (y - self.horizon) / self.camera

    def haze_at(self, y: float) -> float:
        """Return the share of the air's colour in an object that stands at y."""
        return min(self.haze * 0.16 / max(y - self.horizon, 0.02), 0.5)


def draw_backdrop(canvas: Canvas, backdrop: Backdrop) -> None:
    """Draw the sky, clouds, hills, grass, both pavements and the road."""
    rng = np.random.default_rng(backdrop.seed)
    grass, pavement, road = backdrop.grounds
    canvas.gradient(0.0, backdrop.horizon + 0.02, *backdrop.sky)
    _clouds(canvas, rng, backdrop)
    _hills(canvas, rng, backdrop, tinted(grass, 0.85))
    canvas.gradient(backdrop.horizon + 0.01, backdrop.pavement, tinted(grass, 1.08), grass)
    canvas.gradient(backdrop.pavement, backdrop.road, tinted(pavement, 1.05), pavement)
    canvas.gradient(backdrop.road, backdrop.kerb, tinted(road, 1.1), tinted(road, 0.95))
    canvas.gradient(backdrop.kerb, 1.0, pavement, tinted(pavement, 0.88))
    _markings(canvas, backdrop, pavement)


def _clouds(canvas: Canvas, rng: np.random.Generator, backdrop: Backdrop) -> None:
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0, canvas.aspect), rng.uniform(0.02, backdrop.horizon * 0.6)
        for _ in range(5):
            radius = rng.uniform(0.02, 0.06)
            centre = (x + rng.normal(0, 0.08), y + rng.normal(0, 0.012))
            canvas.ellipse(*centre, (radius * 1.8, radius), (250, 250, 250, int(rng.integers(40, 90))))


def _hills(canvas: Canvas, rng: np.random.Generator, backdrop: Backdrop, colour: Colour) -> None:
    haze = 0.55
    far = tuple(round(near + (air - near) * haze) for near, air in zip(colour, backdrop.air, strict=True))
    x = np.linspace(0, canvas.aspect, 24)
    ridge = (
        backdrop.horizon
        - 0.03
        - 0.035 * (np.sin(x * rng.uniform(2, 5) + rng.uniform(0, 6)) + 0.6 * np.sin(x * rng.uniform(6, 11)))
    )
    foot = backdrop.horizon + 0.02
    corners = [(0.0, foot), *zip(x.tolist(), ridge.tolist(), strict=True), (canvas.aspect, foot)]
    canvas.polygon(corners, far)


def _markings(canvas: Canvas, backdrop: Backdrop, pavement: Colour) -> None:
    wide, middle = canvas.aspect, (backdrop.road + backdrop.kerb) / 2
    for edge, thick in ((backdrop.road, 0.008), (backdrop.kerb, 0.014)):
        canvas.polygon([(0.0, edge - thick), (wide, edge - thick), (wide, edge), (0.0, edge)], tinted(pavement, 1.2))
        canvas.polygon(
            [(0.0, edge), (wide, edge), (wide, edge + thick / 2), (0.0, edge + thick / 2)], tinted(pavement, 0.62)
        )
    shift = backdrop.seed % 97 / 97 * 0.3
    for left in (np.arange(-0.3, wide, 0.3) + shift).tolist():
        dash = [(left, middle), (left + 0.16, middle), (left + 0.165, middle + 0.012), (left + 0.005, middle + 0.012)]
        canvas.polygon(dash, (232, 228, 214, 210))
    for x in np.arange(-1.5, wide + 1.5, 0.16).tolist():  # joints between slabs, towards a vanishing point
        spread = (1 - backdrop.horizon) / (backdrop.kerb - backdrop.horizon)
        near = wide / 2 + (x - wide / 2) * spread
        canvas.line([(x, backdrop.kerb + 0.02), (near, 1.0)], 0.003, (*tinted(pavement, 0.7), 110))


def apply_light(
    colours: NDArray[np.float32], backdrop: Backdrop, instances: NDArray[np.uint8], seed: int
) -> Image.Image:
    """Apply texture, the light of the hour, vignetting and sensor noise to the colours."""
    rng = np.random.default_rng((seed, 1))
    rows, columns = instances.shape
    grain = _grain(rng, rows, columns)
    strength = np.where(instances == BACKGROUND, np.float32(0.022), np.float32(0.05))
    y, x = np.linspace(-1, 1, rows, dtype=np.float32)[:, None], np.linspace(-1, 1, columns, dtype=np.float32)
    fall = (1 + np.float32(rng.uniform(-0.08, 0.08)) * x) * (1 - np.float32(0.1) * (x * x + y * y))
    colours *= (1 + strength * grain)[..., None]
    colours *= fall[..., None] * np.array(backdrop.light, dtype=np.float32)
    colours += rng.standard_normal(colours.shape, dtype=np.float32) * np.float32(backdrop.noise)
    return Image.fromarray((colours.clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8))


def _grain(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    """Return noise of two sizes, which gives texture to leaves, walls and ground."""
    return sum(
        np.asarray(
            Image.fromarray(rng.standard_normal((cells * 2, cells * 3), dtype=np.float32)).resize(
                (columns, rows), Image.Resampling.BILINEAR
            )
        )
        for cells in (10, 40)
    )  # type: ignore[return-value] # of arrays
