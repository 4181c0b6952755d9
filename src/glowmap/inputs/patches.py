"""Where the patches of a picture stand in a sequence of tokens that has words as well."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PatchPositions:
    """Where a picture's patches stand among the words that a part of a model reads.

    The sequences of the module ``part`` (a dotted name) have ``tokens`` tokens; ``patches`` of them, from ``first`` on, are the
    picture's.
    """

    part: str
    tokens: int
    first: int
    patches: int
