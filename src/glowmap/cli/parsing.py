"""What is written on the command line, read: numbers, sizes, places, colours, classes and a method's knobs."""

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from glowmap.errors import InputError

if TYPE_CHECKING:
    from glowmap.methods import Method
    from glowmap.models import Model


def methods_asked(names: list[str], settings: list[str]) -> "list[Method] | None":
    """Find the methods by name, with the knobs that the command line sets; None where the library is to choose."""
    from glowmap.methods import METHODS

    if settings and not names:
        raise InputError(
            f"--set {settings[0]!r} is a knob of a method, and none is named; say which: --method rise --set masks=2000"
        )
    return [with_parameters(METHODS[name], settings, names) for name in names] or None


def with_parameters(method: "Method", settings: list[str], others: list[str]) -> "Method":
    """Set the knobs that the command line names; one that only another of the methods has is left to that one."""
    from glowmap.methods import METHODS

    parameters = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r} cannot be read; write KNOB=VALUE, for example masks=2000")
        if name in method.parameters or not any(name in METHODS[other].parameters for other in others):
            parameters[name] = knob_value(value, method.parameters.get(name))
    return method.with_parameters(**parameters)


def knob_value(text: str, default: object) -> object:
    """Read a knob's value: text where its default is text, else a number, true, false or none."""
    words = {"true": True, "yes": True, "false": False, "no": False, "none": None}
    if isinstance(default, str):
        return text
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            number = kind(text)
            return float(number) if isinstance(default, float) else number
    return text


def rows_and_columns(text: str) -> tuple[int, int]:
    """Read a size: one number for a square, or rows x columns."""
    read = re.fullmatch(r"(\d+)(?:x(\d+))?", text.lower())
    if read is None:
        raise InputError(f"--size {text!r} cannot be read; write 224 or 375x500 (rows x columns)")
    return int(read[1]), int(read[2] or read[1])


def point(text: str) -> tuple[float, float]:
    """Read a place in a picture: columns from the left, rows from the top."""
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    read = re.fullmatch(f"{number},{number}", text)
    if read is None:
        raise InputError(
            f"--at {text!r} cannot be read; write X,Y: pixels from the picture's left and from its top, for example 120,80"
        )
    return float(read[1]), float(read[2])


def box_number(text: str) -> int | None:
    """Read which detection is meant: its number, or None for all of them."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise InputError(f"--box {text!r} cannot be read; write its number (0 is the surest detection), or all")
    return int(text)


def colours(text: str, option: str) -> list[float]:
    """Read one number for all colours, or one each for red, green and blue."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise InputError(f"{option} {text!r} cannot be read; write 0.5 or 0.485,0.456,0.406")
    return numbers


def class_asked(text: str, model: "Model") -> int | str:
    """Read digits as an index, unless the model has a class of that very name."""
    return int(text) if text.isdecimal() and text not in (model.class_names or ()) else text
