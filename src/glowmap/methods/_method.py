"""What a method is: a pure function from evidence to raw maps, whose parameter names say which evidence it needs.

Evidence comes by position, the method's parameters by keyword. Only the evidence that is named is made, so a method's cost can be
read off its signature. ``glowmap.evidence.EVIDENCE`` lists the kinds and their cost.

A method returns raw maps, batch x grid, or the terms that are still to be summed over the channels, in the shape of
``activations``. A method that needs a :class:`Query` is called for one image at a time, with a batch of one.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from glowmap.errors import MethodError, is_number
from glowmap.methods._spectral import principal_component
from glowmap.methods.smoothing import SMOOTHING
from glowmap.registry import Registry, near_names
from glowmap.shapes import RawMaps

# Named in errors where a model has no gradients.
GRADIENT_FREE = "a method that needs no gradients: eigen_cam, score_cam, occlusion, rise"
MakeBatch: TypeAlias = Callable[[slice], Tensor]


@runtime_checkable
class Query(Protocol):
    """Ask the model about ``count`` changed inputs of one image, made a chunk at a time so that they never lie in memory at once.

    ``make`` gets a slice of ``range(count)`` and returns so many inputs: maps or images. The answer has ``count`` rows.
    """

    def __call__(self, count: int, make: MakeBatch) -> Any: ...


@dataclass(frozen=True)
class Method:
    """A member of the shelf: the function, what it needs, when to use it, where it comes from, and how its knobs are set."""

    name: str
    function: Callable[..., RawMaps]
    needs: tuple[str, ...]
    parameters: Mapping[str, Any]
    use: str
    paper: str
    passes: str = ""  # what it costs beside the first forward pass, where its evidence does not tell
    pools: bool = False  # it weighs whole channels by an average of their gradients, so it fits heads that pool
    slow: bool = False  # its arithmetic takes longer than the model's passes
    chosen: Mapping[str, Any] = field(default_factory=dict)
    principal: bool = False  # the channels' first principal component in the place of their sum

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring."""
        return inspect.getdoc(self.function).split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr] # put() checks

    def with_parameters(self, **parameters: Any) -> "Method":
        """Copy with other values of the method's own knobs. MethodError for a knob that it does not have."""
        for name in parameters:
            if name not in self.parameters:
                raise MethodError(f"{self.name} has no knob {name!r}; {near_names(name, self.parameters)}")
            self._check(name, parameters[name])
        return replace(self, chosen={**self.chosen, **parameters})

    def _check(self, name: str, value: Any) -> None:
        """Refuse a value of another kind than the knob's default; None stands for a number that is found by itself."""
        default = self.parameters[name]
        number = is_number(value) and math.isfinite(value)
        whole = number and isinstance(value, int)
        fits = {bool: isinstance(value, bool), int: whole, float: number, str: isinstance(value, str)}
        if not fits.get(type(default), value is None or number):
            kind = (
                "a number or None"
                if default is None
                else {int: "a whole number"}.get(type(default), type(default).__name__)
            )
            raise MethodError(f"{name} of {self.name} is {kind} (by default {default}), not {value!r}")

    def __call__(self, **evidence: Any) -> RawMaps:
        """Apply the method to its evidence, and add up its channels where it leaves that open."""
        maps = self.function(**evidence, **self.chosen)
        several = "activations" in evidence and maps.ndim == evidence["activations"].ndim
        if self.principal and not several:
            raise MethodError(f"{self.name} adds up no channels, of which a principal component could be taken")
        if self.principal:
            return principal_component(maps, facing="mean")
        return maps.sum(1) if several else maps


METHODS: Registry[Method] = Registry("method", MethodError)


def method(
    *, paper: str, use: str, passes: str = "", pools: bool = False, slow: bool = False
) -> Callable[[Callable[..., RawMaps]], Callable[..., RawMaps]]:
    """Register a function as a method under its own name. Its positional parameters name the evidence that it needs.

    ``passes`` says what a method that runs the model again costs beside the first forward pass, with its default parameters;
    ``pools`` that it weighs whole channels by an average of their gradients; ``slow`` that its arithmetic takes longer than the
    model's passes. Raises TypeError for a function without a docstring.
    """

    def register(function: Callable[..., RawMaps]) -> Callable[..., RawMaps]:
        signature = inspect.signature(function).parameters
        parameters = {name: one.default for name, one in signature.items() if one.kind is one.KEYWORD_ONLY}
        needs = tuple(name for name in signature if name not in parameters)
        if not inspect.getdoc(function):
            raise TypeError(f"{function.__name__} has no docstring; its first sentence is what users choose by")
        METHODS.register(
            function.__name__, Method(function.__name__, function, needs, parameters, use, paper, passes, pools, slow)
        )
        return function

    return register


def read_methods(method: Any) -> list[Method]:
    """Read a method, or a list of methods, given by name or as they are. Raises MethodError for anything else."""
    methods = method if isinstance(method, list | tuple) else [method]
    if not methods:
        raise MethodError(f"an empty list of methods; give at least one of {', '.join(METHODS)}")
    return [_method(entry) for entry in methods]


def _method(method: Any) -> Method:
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise MethodError(f"a method is a name ({', '.join(METHODS)}), not {type(method).__name__}")
    return METHODS[method]


def read_smoothing(smooth: Any) -> list[str]:
    """Read the kinds of smoothing, given by name. Raises MethodError for a name that is no kind."""
    names = [smooth] if isinstance(smooth, str) else smooth
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise MethodError(f"smooth is a name ({', '.join(SMOOTHING)}) or a list of names, not {smooth!r}")
    for name in names:
        SMOOTHING[name]
    return list(names)
