"""Places along one axis: which frames, slices or channels to show, where the heat is highest, how to write of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glowmap.errors import OutputError

_LEVEL = 1e-5  # resizing repeats the outermost cells, equal but for rounding: a top so flat has a middle
Profile = NDArray[np.floating[Any]]


def hottest(profile: Profile, cold: float = 0.0) -> int | None:
    """Find the place where a profile is highest, the middle of a flat top; None where nothing is above ``cold``."""
    highest = float(profile.max())
    if not highest > cold + _LEVEL:
        return None
    first, last = _around(profile, highest - _LEVEL)
    return (first + last) // 2


def hottest_span(profile: Profile, cold: float = 0.0) -> tuple[int, int] | None:
    """Find the first and last place around the hottest one with at least half its heat: its width at half maximum."""
    if hottest(profile, cold) is None:
        return None
    return _around(profile, cold + (float(profile.max()) - cold) / 2)


def hottest_cell(heat: NDArray[np.floating[Any]], cold: float = 0.0) -> tuple[int, ...] | None:
    """Find the cell of the highest value, axis by axis, each time in the middle of a flat top."""
    cell: list[int] = []
    while len(cell) < heat.ndim:
        left = heat[tuple(cell)]
        place = hottest(left.max(axis=tuple(range(1, left.ndim))), cold)
        if place is None:
            return None
        cell.append(place)
    return tuple(cell)


def spread(count: int, most: int, through: int | None = None) -> list[int]:
    """Choose at most so many of ``count`` places, evenly spaced and in order, one of them ``through``."""
    if count <= most:
        return list(range(count))
    places = (np.arange(most) * 2 + 1) * count // (2 * most)
    if through is not None:
        places[np.abs(places - through).argmin()] = through
    return [int(place) for place in places]


def checked_places(places: Sequence[int], count: int, word: str, whole: str) -> list[int]:
    """Return the places as they count from the start; OutputError for one that is not there, or for none at all."""
    missing = [place for place in places if not -count <= place < count]
    if missing or not len(places):
        asked = f"there is no {word} {missing[0]}" if missing else f"places= is empty, so no {word} is chosen"
        raise OutputError(f"{asked}: this {whole} has {count}, counted from 0 to {count - 1}; choose among these")
    return [int(place) % count for place in places]


def ticks(count: int, most: int) -> list[int]:
    """Choose round numbers among ``count`` places, at most so many, equally far apart."""
    step = next(
        factor * 10**power for power in range(18) for factor in (1, 2, 5) if (count - 1) // (factor * 10**power) < most
    )
    return list(range(0, count, step))


def _around(profile: Profile, level: float) -> tuple[int, int]:
    """Find the run of places at this level or above that holds the (first) highest."""
    top = int(profile.argmax())
    below = np.flatnonzero(profile < level)
    before, after = below[below < top], below[below > top]
    return (int(before[-1]) + 1 if before.size else 0), (int(after[0]) - 1 if after.size else len(profile) - 1)
