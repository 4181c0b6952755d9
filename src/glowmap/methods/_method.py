"""What a method is: a pure function from evidence to raw maps, whose parameter names say which evidence it needs.

Evidence comes by position, the method's parameters by keyword. Only the evidence that is named is made, so a method's cost
can be read off its signature. ``glowmap.evidence.EVIDENCE`` lists the kinds and their cost.

A method returns raw maps, batch x grid, or the terms that are still to be summed over the channels, in the shape of
``activations``. A method that needs a :class:`Query` is called for one image at a time, with a batch of one.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from glowmap.errors import MethodError, is_number
from glowmap.methods._spectral import principal_component
from glowmap.methods.smoothing import SMOOTHING
from glowmap.registry import Registry, near_names
from glowmap.shapes import Flags, Heatmaps, RawMaps

# Named in errors where a model has no gradients.
GRADIENT_FREE = "a method that needs no gradients: eigen_cam, score_cam, occlusion, rise"
MakeBatch: TypeAlias = Callable[[slice], Tensor]


@runtime_checkable
class Query(Protocol):
    """Run the model on ``count`` changed inputs of one image, and return a score or a gradient for each.

    ``make`` gets a slice of ``range(count)`` and returns that many inputs: images or activations. They are made a chunk at a
    time, so that they never lie in memory at once. What is returned has ``count`` rows.
    """

    def __call__(self, count: int, make: MakeBatch) -> Any: ...


@dataclass(frozen=True)
class Method:
    """A registered method: its function, the evidence it needs, its parameters, when to use it and its paper."""

    name: str
    function: Callable[..., RawMaps]
    needs: tuple[str, ...]
    parameters: Mapping[str, Any]  # their defaults
    use: str
    paper: str
    passes: str = ""  # what it costs beside the first forward pass, where its evidence does not tell
    pools: bool = False  # it weighs channels by an average of their gradients, so it fits heads that pool
    slow: bool = False  # its arithmetic takes longer than the model's passes
    for_detections: bool = False  # its maps mean something for targets that are detections
    settings: Mapping[str, Any] = field(default_factory=dict)  # the parameters that are not at their defaults
    reduction: Literal["sum", "principal"] = "sum"  # how its terms become one map: their sum, or a principal component

    @property
    def summary(self) -> str:
        """The first paragraph of the function's docstring."""
        return inspect.getdoc(self.function).split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr] # method() checks

    def with_parameters(self, **parameters: Any) -> "Method":
        """Copy with other values of parameters. Raises MethodError for a parameter that the method does not have."""
        for name, value in parameters.items():
            if name not in self.parameters:
                raise MethodError(f"{self.name} has no parameter {name!r}; {near_names(name, self.parameters)}")
            self._check(name, value)
        return replace(self, settings={**self.settings, **parameters})

    def _check(self, name: str, value: Any) -> None:
        """Refuse a value of another type than the parameter's default. A default of None stands for a number."""
        default = self.parameters[name]
        is_finite = is_number(value) and math.isfinite(value)
        is_whole = is_finite and isinstance(value, int)
        fits = {bool: isinstance(value, bool), int: is_whole, float: is_finite, str: isinstance(value, str)}
        if not fits.get(type(default), value is None or is_finite):
            names = {int: "a whole number", type(None): "a number or None"}
            kind = names.get(type(default), type(default).__name__)
            raise MethodError(f"{name} of {self.name} is {kind} (by default {default}), not {value!r}")

    def __call__(self, **evidence: Any) -> RawMaps:
        """Compute the raw maps from the evidence, and reduce terms over their channels."""
        maps = self.function(**evidence, **self.settings)
        are_terms = "activations" in evidence and maps.ndim == evidence["activations"].ndim
        if self.reduction == "sum":
            return maps.sum(1) if are_terms else maps
        if not are_terms:
            raise MethodError(f"{self.name} adds up no channels, of which a principal component could be taken")
        return principal_component(maps, facing="mean")


_FLAT = 1e-6  # of the largest value: a smaller range is rounding
METHODS: Registry[Method] = Registry("method", MethodError)


def method(
    *, paper: str, use: str, passes: str = "", pools: bool = False, slow: bool = False, for_detections: bool = False
) -> Callable[[Callable[..., RawMaps]], Callable[..., RawMaps]]:
    """Register a function as a method under its own name. Its positional parameters name the evidence that it needs.

    ``passes`` says what a method that runs the model again costs beside the first forward pass, with its default parameters.
    For the other arguments see :class:`Method`. Raises TypeError for a function without a docstring.
    """

    def register(function: Callable[..., RawMaps]) -> Callable[..., RawMaps]:
        signature = inspect.signature(function).parameters
        parameters = {name: entry.default for name, entry in signature.items() if entry.kind is entry.KEYWORD_ONLY}
        needs = tuple(name for name in signature if name not in parameters)
        name = function.__name__
        if not inspect.getdoc(function):
            raise TypeError(f"{name} has no docstring; its first sentence is what users choose by")
        METHODS.register(
            name, Method(name, function, needs, parameters, use, paper, passes, pools, slow, for_detections)
        )
        return function

    return register


def read_methods(method: Any) -> list[Method]:
    """Read a method, or a list of methods, given by name or as they are. Raises MethodError for anything else."""
    methods = method if isinstance(method, list | tuple) else [method]
    if not methods:
        raise MethodError(f"an empty list of methods; give at least one of {', '.join(METHODS)}")
    for entry in methods:
        if not isinstance(entry, Method | str):
            raise MethodError(f"a method is a name ({', '.join(METHODS)}), not {type(entry).__name__}")
    return [METHODS[entry] if isinstance(entry, str) else entry for entry in methods]


def reduced_for(methods: Sequence[Method], smoothing: Sequence[str]) -> Sequence[Method]:
    """Return the methods as a kind of smoothing needs them: with the principal component of their terms, not the sum."""
    return [replace(entry, reduction="principal") for entry in methods] if "principal" in smoothing else methods


def read_smoothing(smooth: Any) -> list[str]:
    """Read the kinds of smoothing, given by name. Raises MethodError for a name that is no kind."""
    names = [smooth] if isinstance(smooth, str) else smooth
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise MethodError(f"smooth is a name ({', '.join(SMOOTHING)}) or a list of names, not {smooth!r}")
    for name in names:
        SMOOTHING[name]
    return list(names)


def is_flat(maps: Heatmaps) -> Flags:
    """Tell which maps of a batch have the same value everywhere, up to rounding."""
    flat = maps.flatten(1)
    return flat.amax(1) - flat.amin(1) <= _FLAT * flat.abs().amax(1)
