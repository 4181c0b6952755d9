"""Streets: the layout of objects from a seed, and the picture of it with the truth about every pixel."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.demo.world import buildings as buildings
from glowmap.demo.world import living as living
from glowmap.demo.world import vehicles as vehicles
from glowmap.demo.world.backdrop import Backdrop, apply_light, draw_backdrop
from glowmap.demo.world.canvas import BACKGROUND, Brush, Canvas
from glowmap.demo.world.kinds import KINDS
from glowmap.errors import InputError, is_whole_number

CLASSES = ("background", *KINDS)
ROWS, COLUMNS = 128, 192  # input size of the demo's models
EMPTY = "empty street"  # in place of a kind: only houses and trees
# Moving objects: the largest number of each, and the probability of each one.
_CROWD = {"car": (3, 0.75), "bus": (1, 0.45), "person": (3, 0.6), "dog": (1, 0.5), "bicycle": (1, 0.5)}


@dataclass(frozen=True)
class PlacedObject:
    """One object of a street: its kind, the middle of its foot (x, y), its height, and the seed of its appearance."""

    kind: str
    x: float
    y: float
    size: float
    mirrored: bool
    seed: int


@dataclass(frozen=True)
class Scene:
    """A picture and the truth about it: ``instances`` holds the number of the object that each pixel shows.

    Objects count from 1, the farthest first, and ``objects`` holds their kinds; 0 is the background.
    """

    picture: Image.Image
    instances: NDArray[np.uint8]
    objects: tuple[str, ...]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The class of every pixel, as an index into ``CLASSES``."""
        classes = [BACKGROUND, *(CLASSES.index(name) for name in self.objects)]
        return np.array(classes, dtype=np.uint8)[self.instances]

    def mask(self, kind: str) -> NDArray[np.bool_]:
        """Return the pixels that show objects of this kind."""
        KINDS[kind]
        return np.asarray(self.labels == CLASSES.index(kind))


@dataclass(frozen=True)
class Street:
    """The layout of a street, independent of resolution: see :func:`street`."""

    backdrop: Backdrop
    objects: tuple[PlacedObject, ...]
    seed: int

    def draw(self, rows: int = ROWS, columns: int = COLUMNS, *, finer: int = 2) -> Scene:
        """Draw the street at a resolution, in the ratio 2:3, with edges ``finer`` times oversampled."""
        if min(rows, columns, finer) < 1:
            raise InputError(
                f"a street of {rows} x {columns} pixels, drawn {finer} times finer, has no pixels; try {ROWS} x {COLUMNS}"
            )
        if columns * 2 != rows * 3:
            raise InputError(
                f"a street is drawn in the ratio 2:3, not at {rows} x {columns}; try {rows} x {rows * 3 // 2}"
            )
        canvas = Canvas(rows, columns, finer)
        draw_backdrop(canvas, self.backdrop)
        for number, placed in enumerate(self.objects, 1):
            haze = (self.backdrop.air, self.backdrop.haze_at(placed.y))
            brush = Brush(canvas, number, placed.x, placed.y, placed.size, placed.mirrored, haze)
            KINDS[placed.kind].draw(brush, np.random.default_rng(placed.seed))
        colours, instances = canvas.finished()
        picture = apply_light(colours, self.backdrop, instances, self.seed)
        return Scene(picture, instances, tuple(placed.kind for placed in self.objects))


def street(seed: int, *, only: str | None = None) -> Street:
    """Lay out a street from a seed, the same on every machine.

    ``only`` is for classifiers, whose pictures have one class: the single kind in front of the houses and trees, in full view,
    or ``EMPTY``. Raises InputError for an unknown kind.
    """
    if not is_whole_number(seed, 0):
        raise InputError(f"a street's seed is a whole number from 0 on, not {seed!r}")
    rng = np.random.default_rng(seed)
    backdrop = Backdrop.sample(rng)
    objects = [*_houses(rng, backdrop), *_trees(rng, backdrop)]
    if only is None:
        objects += _crowd(rng, backdrop)
    elif only != EMPTY:
        objects.append(_alone(rng, backdrop, only))
    return Street(backdrop, tuple(sorted(objects, key=lambda placed: placed.y)), seed)


def _placed_object(
    rng: np.random.Generator, kind: str, x: float, y: float, backdrop: Backdrop, *, larger: float = 1.0
) -> PlacedObject:
    size = rng.uniform(*KINDS[kind].height) * backdrop.metre_at(y) * larger
    return PlacedObject(kind, x, y, size, bool(rng.random() < 0.5), int(rng.integers(2**31)))


def _houses(rng: np.random.Generator, backdrop: Backdrop) -> list[PlacedObject]:
    objects: list[PlacedObject] = []
    x = rng.uniform(-0.1, 0.4)
    while x < 1.5 and len(objects) < 5:
        y = backdrop.pavement - rng.uniform(0.0, 0.012)
        house = _placed_object(rng, "house", x, y, backdrop, larger=rng.uniform(1.0, 1.5))
        objects.append(house)
        x += house.size * rng.uniform(1.0, 1.5) + (rng.uniform(0.1, 0.5) if rng.random() < 0.5 else 0.0)
    return objects


def _trees(rng: np.random.Generator, backdrop: Backdrop) -> list[PlacedObject]:
    count = int(rng.integers(1, 5))
    spots = rng.permutation(6)[:count]
    feet = rng.uniform(backdrop.pavement + 0.005, backdrop.road - 0.01, count)
    return [
        _placed_object(rng, "tree", float((spot + rng.uniform(0.2, 0.8)) / 4), float(y), backdrop, larger=1.2)
        for spot, y in zip(spots, feet, strict=True)
    ]


def _foot(rng: np.random.Generator, kind: str, backdrop: Backdrop) -> float:
    if kind in ("car", "bus"):
        return float(rng.uniform(backdrop.road + 0.05, backdrop.kerb))
    return float(rng.uniform(backdrop.kerb - 0.06, 0.97))


def _crowd(rng: np.random.Generator, backdrop: Backdrop) -> list[PlacedObject]:
    """Place cars, people and others so that most of each stays visible, as a hidden object is no fair target."""
    objects: list[PlacedObject] = []
    for kind, (most, likely) in _CROWD.items():
        for _ in range(int(rng.binomial(most, likely))):
            for _ in range(6):  # attempts to find room
                placed = _placed_object(rng, kind, rng.uniform(0.05, 1.45), _foot(rng, kind, backdrop), backdrop)
                if all(_covered(placed, other) < 0.45 for other in objects):
                    objects.append(placed)
                    break
    return objects


def _covered(first: PlacedObject, second: PlacedObject) -> float:
    """Return the share of the farther object's width and height that the nearer one covers."""
    far, near = sorted((first, second), key=lambda placed: placed.y)
    half = (KINDS[far.kind].width * far.size / 2, KINDS[near.kind].width * near.size / 2)
    across = min(far.x + half[0], near.x + half[1]) - max(far.x - half[0], near.x - half[1])
    down = min(far.y, near.y) - max(far.y - far.size, near.y - near.size)
    return max(across, 0.0) / (2 * half[0]) * max(down, 0.0) / far.size


def _alone(rng: np.random.Generator, backdrop: Backdrop, kind: str) -> PlacedObject:
    """Place one object near the camera and wholly inside the picture, at a size that makes all kinds cover similar areas."""
    width, y = KINDS[kind].width, _foot(rng, kind, backdrop)
    size = float(min(rng.uniform(0.36, 0.56) / width**0.5, 0.62))
    reach = max(0.72 - width * size / 2, 0.05)
    placed = _placed_object(rng, kind, 0.75 + rng.uniform(-reach, reach), y, backdrop)
    return replace(placed, size=size)
