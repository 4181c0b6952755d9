"""Streets: what stands where, from a seed, and the picture of it with the truth about every pixel."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.demo.world import buildings as buildings
from glowmap.demo.world import living as living
from glowmap.demo.world import vehicles as vehicles
from glowmap.demo.world.backdrop import Backdrop, draw_backdrop, lit
from glowmap.demo.world.canvas import NOBODY, Brush, Canvas
from glowmap.demo.world.kinds import KINDS
from glowmap.errors import InputError, is_whole_number

CLASSES = ("background", *KINDS)
ROWS, COLUMNS = 128, 192  # what the demo's models take
EMPTY = "empty street"  # in the place of a kind: nothing stands before the houses and trees
# What is on the move or stands at the kerb: how many there are at most, and how likely each is.
_CROWD = {"car": (3, 0.75), "bus": (1, 0.45), "person": (3, 0.6), "dog": (1, 0.5), "bicycle": (1, 0.5)}


@dataclass(frozen=True)
class Thing:
    """One object of a street: its kind, the middle of its foot, its height, and the seed of its looks."""

    kind: str
    x: float
    y: float
    size: float
    mirrored: bool
    seed: int


@dataclass(frozen=True)
class Scene:
    """A picture and the truth about it: ``owners`` holds for every pixel the number of the object that is seen there.

    Objects count from 1, the farthest first; 0 is the background.
    """

    picture: Image.Image
    owners: NDArray[np.uint8]
    objects: tuple[str, ...]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The class of every pixel, as an index into ``CLASSES``."""
        classes = [NOBODY, *(CLASSES.index(name) for name in self.objects)]
        return np.array(classes, dtype=np.uint8)[self.owners]

    def mask(self, kind: str) -> NDArray[np.bool_]:
        """Where objects of this kind are seen."""
        KINDS[kind]
        return np.asarray(self.labels == CLASSES.index(kind))


@dataclass(frozen=True)
class Street:
    """What stands where before what, at any resolution: see :func:`street`."""

    backdrop: Backdrop
    things: tuple[Thing, ...]
    seed: int

    def drawn(self, rows: int = ROWS, columns: int = COLUMNS, *, finer: int = 2) -> Scene:
        """Draw the street; a resolution changes how finely it is drawn, and nothing else."""
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
        for number, thing in enumerate(self.things, 1):
            haze = (self.backdrop.air, self.backdrop.haze_at(thing.y))
            brush = Brush(canvas, number, thing.x, thing.y, thing.size, thing.mirrored, haze)
            KINDS[thing.kind].draw(brush, np.random.default_rng(thing.seed))
        colours, owners = canvas.finished()
        return Scene(lit(colours, self.backdrop, owners, self.seed), owners, tuple(thing.kind for thing in self.things))


def street(seed: int, *, only: str | None = None) -> Street:
    """Lay a street out from a seed, the same for the same seed everywhere.

    ``only`` names the one kind that stands before the houses and trees, alone and in full view, or is ``EMPTY``: for a
    classifier, whose pictures have one answer. Raises InputError for a kind that is not on the shelf.
    """
    if not is_whole_number(seed, 0):
        raise InputError(f"a street's seed is a whole number from 0 on, not {seed!r}")
    rng = np.random.default_rng(seed)
    backdrop = Backdrop.drawn_from(rng)
    things = [*_houses(rng, backdrop), *_trees(rng, backdrop)]
    if only is None:
        things += _crowd(rng, backdrop)
    elif only != EMPTY:
        things.append(_alone(rng, backdrop, only))
    return Street(backdrop, tuple(sorted(things, key=lambda thing: thing.y)), seed)


def _thing(rng: np.random.Generator, kind: str, x: float, y: float, backdrop: Backdrop, larger: float = 1.0) -> Thing:
    size = rng.uniform(*KINDS[kind].height) * backdrop.metre_at(y) * larger
    return Thing(kind, x, y, size, bool(rng.random() < 0.5), int(rng.integers(2**31)))


def _houses(rng: np.random.Generator, backdrop: Backdrop) -> list[Thing]:
    things: list[Thing] = []
    x = rng.uniform(-0.1, 0.4)
    while x < 1.5 and len(things) < 5:
        y = backdrop.pavement - rng.uniform(0.0, 0.012)
        house = _thing(rng, "house", x, y, backdrop, larger=rng.uniform(1.0, 1.5))
        things.append(house)
        x += house.size * rng.uniform(1.0, 1.5) + (rng.uniform(0.1, 0.5) if rng.random() < 0.5 else 0.0)
    return things


def _trees(rng: np.random.Generator, backdrop: Backdrop) -> list[Thing]:
    count = int(rng.integers(1, 5))
    spots = rng.permutation(6)[:count]
    feet = rng.uniform(backdrop.pavement + 0.005, backdrop.road - 0.01, count)
    return [
        _thing(rng, "tree", float((spot + rng.uniform(0.2, 0.8)) / 4), float(y), backdrop, larger=1.2)
        for spot, y in zip(spots, feet, strict=True)
    ]


def _foot(rng: np.random.Generator, kind: str, backdrop: Backdrop) -> float:
    if kind in ("car", "bus"):
        return float(rng.uniform(backdrop.road + 0.05, backdrop.kerb))
    return float(rng.uniform(backdrop.kerb - 0.06, 0.97))


def _crowd(rng: np.random.Generator, backdrop: Backdrop) -> list[Thing]:
    """Set cars, people, ... down where most of each stays in view: somebody hidden by others is no fair question."""
    things: list[Thing] = []
    for kind, (most, likely) in _CROWD.items():
        for _ in range(int(rng.binomial(most, likely))):
            for _ in range(6):  # as often as it takes to find room, and no more
                thing = _thing(rng, kind, rng.uniform(0.05, 1.45), _foot(rng, kind, backdrop), backdrop)
                if all(_covered(thing, other) < 0.45 for other in things):
                    things.append(thing)
                    break
    return things


def _covered(one: Thing, other: Thing) -> float:
    """Tell which share of the farther one's width and height the nearer one covers."""
    far, near = sorted((one, other), key=lambda thing: thing.y)
    half = (KINDS[far.kind].width * far.size / 2, KINDS[near.kind].width * near.size / 2)
    across = min(far.x + half[0], near.x + half[1]) - max(far.x - half[0], near.x - half[1])
    down = min(far.y, near.y) - max(far.y - far.size, near.y - near.size)
    return max(across, 0.0) / (2 * half[0]) * max(down, 0.0) / far.size


def _alone(rng: np.random.Generator, backdrop: Backdrop, kind: str) -> Thing:
    """Set one object down near by, the whole of it in the picture, where it covers about as much as any other kind."""
    width, y = KINDS[kind].width, _foot(rng, kind, backdrop)
    size = float(min(rng.uniform(0.36, 0.56) / width**0.5, 0.62))
    reach = max(0.72 - width * size / 2, 0.05)
    thing = _thing(rng, kind, 0.75 + rng.uniform(-reach, reach), y, backdrop)
    return replace(thing, size=size)
