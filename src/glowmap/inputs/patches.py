"""Where the patches of a picture stand among the words of a sequence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PatchPositions:
    """Where a picture's patches stand among the words that a part of a model reads, as the model's input says.

    The sequences of that ``part``, a dotted name, have so many ``tokens``, of which ``cells`` from ``before`` on are the patches.
    """

    part: str
    tokens: int
    before: int
    cells: int
