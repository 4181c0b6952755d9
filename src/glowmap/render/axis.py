"""Positions along one axis: which frames to show, where the heat is highest, and where ticks stand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glowmap.errors import OutputError

_LEVEL = 1e-5  # resizing repeats the outermost cells up to rounding; values this close form one flat top
Profile = NDArray[np.floating[Any]]


def hottest(profile: Profile, cold: float = 0.0) -> int | None:
    """Return the index where a profile is highest, the middle of a flat top; None where nothing is above ``cold``."""
    highest = float(profile.max())
    if not highest > cold + _LEVEL:
        return None
    first, last = _around(profile, highest - _LEVEL)
    return (first + last) // 2


def hottest_span(profile: Profile, cold: float = 0.0) -> tuple[int, int] | None:
    """Return the first and last index around the hottest that have at least half its heat: the width at half maximum."""
    if hottest(profile, cold) is None:
        return None
    return _around(profile, cold + (float(profile.max()) - cold) / 2)


def hottest_cell(heat: NDArray[np.floating[Any]], cold: float = 0.0) -> tuple[int, ...] | None:
    """Return the indices of the highest value, found axis by axis, each time in the middle of a flat top."""
    cell: list[int] = []
    while len(cell) < heat.ndim:
        remaining = heat[tuple(cell)]
        index = hottest(remaining.max(axis=tuple(range(1, remaining.ndim))), cold)
        if index is None:
            return None
        cell.append(index)
    return tuple(cell)


def spread(count: int, most: int, through: int | None = None) -> list[int]:
    """Choose at most ``most`` of ``count`` indices, evenly spaced and in order, with ``through`` among them."""
    if count <= most:
        return list(range(count))
    indices = (np.arange(most) * 2 + 1) * count // (2 * most)
    if through is not None:
        indices[np.abs(indices - through).argmin()] = through
    return [int(index) for index in indices]


def checked_frames(frames: Sequence[int], count: int, word: str, whole: str) -> list[int]:
    """Return indices of frames counted from the start. Raises OutputError where one does not exist, or there is none.

    ``word`` and ``whole`` are the words of the message, such as "slice" and "volume".
    """
    missing = [frame for frame in frames if not -count <= frame < count]
    if missing or not len(frames):
        fact = f"there is no {word} {missing[0]}" if missing else f"frames= is empty, so no {word} is chosen"
        raise OutputError(f"{fact}: this {whole} has {count}, counted from 0 to {count - 1}; choose among these")
    return [int(frame) % count for frame in frames]


def ticks(count: int, most: int) -> list[int]:
    """Choose at most ``most`` round numbers below ``count``, equally far apart."""
    step = next(
        factor * 10**power for power in range(18) for factor in (1, 2, 5) if (count - 1) // (factor * 10**power) < most
    )
    return list(range(0, count, step))


def _around(profile: Profile, level: float) -> tuple[int, int]:
    """Return the first and last index of the run at ``level`` or above that holds the (first) highest value."""
    top = int(profile.argmax())
    below = np.flatnonzero(profile < level)
    before, after = below[below < top], below[below > top]
    return (int(before[-1]) + 1 if before.size else 0), (int(after[0]) - 1 if after.size else len(profile) - 1)
