"""What a question points at in the picture: a point, a box or a region, which figures draw."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.targets._answer import Answer
from glowmap.targets._target import Target, parts

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Mark:
    """One of a point (x, y), a box (left, top, right, bottom), and a region (rows x columns, true inside).

    Points and boxes are in shares of what the model saw: 0 is its left or upper edge, 1 its right or lower one. A region covers
    what the model saw, at any resolution. Raises TargetError for none of the three, or more than one.
    """

    point: tuple[float, float] | None = None
    box: Corners | None = None
    region: Bool[Tensor, "rows columns"] | None = None

    def __post_init__(self) -> None:
        given = sum(one is not None for one in (self.point, self.box, self.region))
        if given != 1:
            raise TargetError(f"a mark is one of a point, a box and a region, and this one has {given}; give just one")


def in_shares(box: Sequence[float], input_size: tuple[int, ...]) -> Corners:
    """Turn left, top, right, bottom in pixels of the input (rows x columns) into shares of it."""
    left, top, right, bottom = map(float, box)
    rows, columns = input_size
    return left / columns, top / rows, right / columns, bottom / rows


def marks_of(question: Target, answer: Answer, image: int) -> tuple[Mark, ...]:
    """List what a question points at in an image: what it says itself, or else what its parts say, each once."""
    mark = getattr(question, "mark", None)
    if mark is None:
        return _distinct([one for part in parts(question) for one in marks_of(part, answer, image)])
    own: Mark | Sequence[Mark] | None = mark(answer, image)
    return (own,) if isinstance(own, Mark) else _distinct(own or ())


def ranks(question: Target) -> bool:
    """Tell whether a question is about classes, of which a figure may show which are the likeliest."""
    own = getattr(question, "ranks", None)
    if own is None:
        return any(map(ranks, parts(question))) if parts(question) else True
    return bool(own)


def _distinct(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """Keep each point and box once: two classes may be asked about at one place."""
    return tuple({(one.point, one.box, None if one.region is None else id(one.region)): one for one in marks}.values())
