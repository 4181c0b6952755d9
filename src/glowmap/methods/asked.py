"""Methods as people ask for them, and what a list of them needs of a forward pass."""

from collections.abc import Sequence
from typing import Any

from glowmap.errors import MethodError
from glowmap.methods._method import ASKING, METHODS, OF_ATTENTION, OF_THE_INPUT, Method
from glowmap.methods.smoothing import SMOOTHING


def asks(methods: Sequence[Method]) -> bool:
    """Tell whether any of them asks the model again."""
    return any((ASKING | OF_THE_INPUT | OF_ATTENTION) & {*method.needs} for method in methods)


def resumes(methods: Sequence[Method]) -> bool:
    """Tell whether any of them runs the model on from a layer."""
    return any({"rescore_maps", "gradients_of_maps"} & {*method.needs} for method in methods)


def differentiates(methods: Sequence[Method]) -> bool:
    """Tell whether any of them needs a graph from the layer on."""
    return any({"gradients", "curvature", "class_weights"} & {*method.needs} for method in methods)


def methods_asked(method: Any) -> list[Method]:
    """Read a method, or several, by name or as they are. MethodError for what is none."""
    several = method if isinstance(method, list | tuple) else [method]
    if not several:
        raise MethodError(f"an empty list of methods; give at least one of {', '.join(METHODS)}")
    return [_method(one) for one in several]


def _method(method: Any) -> Method:
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise MethodError(f"a method is a name ({', '.join(METHODS)}), not {type(method).__name__}")
    return METHODS[method]


def smoothing_asked(smooth: Any) -> list[str]:
    """Read the ways of smoothing by name. MethodError for what is none."""
    names = [smooth] if isinstance(smooth, str) else smooth
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise MethodError(f"smooth is a name ({', '.join(SMOOTHING)}) or a list of names, not {smooth!r}")
    for name in names:
        SMOOTHING[name]
    return list(names)
