"""The errors that Glowmap raises on purpose.

A message is one sentence with the fact, the place and, after a semicolon, the remedy::

    GlowmapError
    ├── InputError     a picture, tensor, array or file that cannot be explained
    ├── LayerError     a layer that does not exist, did not run, or has no activations on a grid
    ├── TargetError    a target that this model has no score for
    ├── MethodError    a method that does not exist, or that needs evidence which does not exist
    ├── ModelError     a model that cannot be found, built or loaded, or that raised while it ran
    ├── OutputError    an explanation that cannot be drawn, or a file that cannot be written
    └── MissingExtra   an optional library that this call needs and that is not installed

A remedy that Python and the command line write differently is a :class:`Remedy`.
"""

from dataclasses import dataclass
from math import inf
from numbers import Integral
from typing import TypeGuard


@dataclass(frozen=True)
class Remedy:
    """What to do about an error: in Python, and on the command line where an option does it."""

    python: str
    option: str | None = None

    @property
    def on_command_line(self) -> str:
        """The option; where none helps, the Python remedy, marked as such."""
        return f"{self.python} (in Python)" if self.option is None else self.option


class GlowmapError(Exception):
    """The root of all errors that Glowmap raises on purpose.

    ``str(error)`` is the message; where a ``remedy`` is given, the message and the Python remedy. A remedy that reads alike in
    Python and on the command line is part of the message, or a plain string.
    """

    def __init__(self, message: str = "", *, remedy: Remedy | str | None = None) -> None:
        remedy = Remedy(remedy, remedy) if isinstance(remedy, str) else remedy
        super().__init__(message if remedy is None else f"{message}; {remedy.python}")
        self.fact = message
        self.remedy = remedy

    @property
    def on_command_line(self) -> str:
        """The message as the command line prints it: the remedy is an option."""
        return self.fact if self.remedy is None else f"{self.fact}; {self.remedy.on_command_line}"


class InputError(GlowmapError):
    """A picture, tensor, array or file that cannot be explained."""


class LayerError(GlowmapError):
    """A layer that does not exist, did not run, or has no activations on a grid."""


class TargetError(GlowmapError):
    """A target that this model has no score for."""


class MethodError(GlowmapError):
    """A method that does not exist, or that needs evidence which does not exist."""


class ModelError(GlowmapError):
    """A model that cannot be found, built or loaded, or that raised while it ran."""


class OutputError(GlowmapError):
    """An explanation that cannot be drawn, or a file that cannot be written."""


class MissingExtra(GlowmapError):  # noqa: N818 - the name says what happened
    """An optional library that this call needs and that is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {library}, which is not installed; pip install "glowmap[{extra}]"')
        self._parts = library, extra, purpose

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str, str]]:
        """Pickle the arguments, not the message that they make."""
        return type(self), self._parts


def summarise(error: BaseException) -> str:
    """Describe an error of another library in one line: its type and the first line of its message."""
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first_line}"


def is_whole_number(value: object, least: int | float = -inf, below: int | float = inf) -> TypeGuard[int]:
    """Return whether an argument is an integer of Python or NumPy, and no bool, with ``least <= value < below``."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < below


def is_number(value: object) -> TypeGuard[float]:
    """Return whether an argument is an integer or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
