"""All that a detector might have found, before suppression, and what it kept of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, overload

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """One detection: which candidate it was, of which class, how sure, and its box (left, top, right, bottom) in input pixels.

    ``candidate`` is None where the detector's own suppression changes boxes or scores, so that it cannot be told which it was.
    """

    candidate: int | None
    category: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Candidates:
    """The candidates of each image, in the graph of the forward pass, and those that the detector kept, the surest first.

    ``boxes`` are candidate x 4 (or candidate x class x 4, where each class has a box of its own): left, top, right, bottom in
    the pixels of the detector's input, before they are cut off at the picture's edges (there no gradient would be left).
    ``logits`` are candidate x class, with the classes counted as the class names are, and before any softmax, sigmoid or
    suppression; ``objectness`` is a logit a candidate, where the detector has one; ``masks`` are logits, candidate x rows x
    columns. ``canvas`` are the rows and columns that the detector's layers cover, in pixels of its input, where it pads its
    input inside; its top left corner is the picture's. ``anchored`` says that a candidate is a fixed place of one layer (an
    anchor, a cell): its number means the same place in every picture, and all that is said of it is said there. ``levels`` tell
    for each candidate the level of a pyramid that it is read from, where that is known. ``sigmoid`` says that each class's logit
    makes its probability by itself; else it is a softmax over all, to which ``no_object``, a logit a candidate, belongs where the
    detector has it beside the classes. ``background`` is the class that stands for that where it is one of them.
    """

    boxes: Sequence[Tensor]
    logits: Sequence[Tensor]
    found: Sequence[Sequence[Found]]
    objectness: Sequence[Tensor] | None = None
    masks: Sequence[Tensor] | None = None
    canvas: tuple[int, int] | None = None
    anchored: bool = False
    levels: Sequence[Tensor] | None = None
    sigmoid: bool = False
    no_object: Sequence[Tensor] | None = None
    background: int | None = None

    def only(self, image: int) -> "Candidates":
        """Cut down to one image."""
        one = slice(image, image + 1)
        parts = ("boxes", "logits", "found", "objectness", "masks", "levels", "no_object")
        own = {part: getattr(self, part) for part in parts}
        return replace(self, **{part: several and several[one] for part, several in own.items()})


class OnDemand(Sequence[T], Generic[T]):
    """A sequence whose members are made when they are asked for, and kept."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count, self._make = count, make
        self._made: dict[int, T] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "OnDemand[T]": ...
    def __getitem__(self, index: int | slice) -> "T | OnDemand[T]":
        at = range(self._count)[index]
        if isinstance(at, range):
            return OnDemand(len(at), lambda number: self[at[number]])
        if at not in self._made:
            self._made[at] = self._make(at)
        return self._made[at]
