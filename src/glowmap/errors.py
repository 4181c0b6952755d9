"""Every error that Glowmap raises on purpose.

Each message is one sentence that names the fact, the place and the remedy::

    GlowmapError
    ├── InputError     a picture, tensor, array or file that cannot be explained
    ├── LayerError     a layer that is missing, did not run, or has no maps to weigh
    ├── TargetError    a question that this model cannot be asked
    ├── MethodError    a method that is not on the shelf, or asks for evidence that does not exist
    ├── ModelError     a model that cannot be found, built or loaded, or that raised while it ran
    ├── OutputError    an answer that cannot be drawn or written where it was asked for
    └── MissingExtra   an optional library that this call needs and that is not installed
"""


class GlowmapError(Exception):
    """The root: ``except GlowmapError`` catches all that Glowmap raises on purpose and nothing else."""


class InputError(GlowmapError):
    """A picture, tensor, array or file that cannot be explained."""


class LayerError(GlowmapError):
    """A layer that is missing, did not run, or has no maps to weigh."""


class TargetError(GlowmapError):
    """A question that this model cannot be asked."""


class MethodError(GlowmapError):
    """A method that is not on the shelf, or one that asks for evidence that does not exist."""


class ModelError(GlowmapError):
    """A model that cannot be found, built or loaded, or that raised while it ran."""


class OutputError(GlowmapError):
    """An answer that cannot be drawn or written where it was asked for."""


class MissingExtra(GlowmapError):  # noqa: N818 - the name says what happened
    """An optional library that this call needs and that is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {library}, which is not installed; pip install "glowmap[{extra}]"')


def told(error: BaseException) -> str:
    """Retell somebody else's error in one line: its type and the first line of its message."""
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first_line}"
