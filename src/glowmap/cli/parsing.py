"""Values on the command line: numbers, sizes, points, colours, classes, and the parameters of a method."""

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from glowmap.errors import InputError

if TYPE_CHECKING:
    from glowmap.methods import Method
    from glowmap.models import Model


def parse_methods(names: list[str], settings: list[str]) -> "list[Method] | None":
    """Return the methods of these names with their parameters; None where none is named and the library chooses."""
    from glowmap.methods import METHODS

    if settings and not names:
        raise InputError(
            f"--set {settings[0]!r} is a parameter of a method, and none is named; name it: --method rise --set masks=2000"
        )
    return [set_parameters(METHODS[name], settings, names) for name in names] or None


def set_parameters(method: "Method", settings: list[str], names: list[str]) -> "Method":
    """Return the method with the ``settings`` (NAME=VALUE) that it has.

    A setting that only another of the methods in ``names`` has is left to that method.
    """
    from glowmap.methods import METHODS

    parameters = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r} cannot be read; write NAME=VALUE, for example masks=2000")
        if name in method.parameters or not any(name in METHODS[other].parameters for other in names):
            parameters[name] = parse_parameter(value, method.parameters.get(name))
    return method.with_parameters(**parameters)


def parse_parameter(text: str, default: object) -> object:
    """Return a parameter's value: text where the default is text, else a number, True, False or None."""
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


def parse_size(text: str) -> tuple[int, int]:
    """Return rows and columns; a single number is a square."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.lower())
    if match is None:
        raise InputError(f"--size {text!r} cannot be read; write 224 or 375x500 (rows x columns)")
    return int(match[1]), int(match[2] or match[1])


def parse_point(text: str) -> tuple[float, float]:
    """Return a point of a picture in pixels: x from the left, y from the top."""
    number = r"\s*(\d+(?:\.\d+)?)\s*"
    match = re.fullmatch(f"{number},{number}", text)
    if match is None:
        raise InputError(
            f"--at {text!r} cannot be read; write X,Y: pixels from the picture's left and from its top, for example 120,80"
        )
    return float(match[1]), float(match[2])


def parse_box(text: str) -> int | None:
    """Return the number of a detection; None is all of them."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise InputError(f"--box {text!r} cannot be read; write its number (0 is the surest detection), or all")
    return int(text)


def parse_colours(text: str, option: str) -> list[float]:
    """Return one number for all colours, or three for red, green and blue."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise InputError(f"{option} {text!r} cannot be read; write 0.5 or 0.485,0.456,0.406")
    return numbers


def parse_class(text: str, model: "Model") -> int | str:
    """Return digits as an index, unless the model has a class of that name."""
    return int(text) if text.isdecimal() and text not in (model.class_names or ()) else text
