"""Cautions: sentences that a person must read before trusting a map.

Each kind is defined in the package that produces it::

    RANDOM_WEIGHTS = caution_kind("random-weights", "caution", "Load trained weights.")
    RANDOM_WEIGHTS("the weights are random: ...")  # a caution, which is the sentence with a code and a level
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Level: TypeAlias = Literal[
    "info", "caution"
]  # info: the map is right, and this says what it shows; caution: it may mislead


@dataclass(frozen=True)
class CautionKind:
    """A kind of caution: a code that never changes, a level, and what a person can do about it."""

    code: str
    level: Level
    remedy: str

    def __call__(self, sentence: str) -> "Caution":
        """Make a caution of this kind."""
        return Caution(sentence, self)


class Caution(str):
    """A sentence to read before trusting a map. Its ``code`` and ``level`` are those of its kind."""

    kind: CautionKind

    def __new__(cls, sentence: str, kind: CautionKind) -> "Caution":
        """Create a sentence with a kind."""
        caution = super().__new__(cls, sentence)
        caution.kind = kind
        return caution

    @property
    def code(self) -> str:
        """The code of its kind, such as ``"blank-map"``."""
        return self.kind.code

    @property
    def level(self) -> Level:
        """``"info"`` or ``"caution"``."""
        return self.kind.level

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Return the arguments of ``__new__``, for copying and pickling."""
        return str(self), self.kind


CAUTIONS: dict[str, CautionKind] = {}  # by code


def caution_kind(code: str, level: Level, remedy: str) -> CautionKind:
    """Define a kind of caution. Raises ValueError at import for a code that is taken."""
    if code in CAUTIONS:
        raise ValueError(f"a kind of caution with the code {code!r} is defined already")
    CAUTIONS[code] = CautionKind(code, level, remedy)
    return CAUTIONS[code]
