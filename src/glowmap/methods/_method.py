"""What a method is: a pure function from evidence to raw maps, whose parameter names say which evidence it needs.

The evidence comes by position and the method's own knobs by keyword. The road makes only the evidence that is named, so that a
method's cost can be read off its signature:

=========================  ==============================================================  ==========================
parameter                  what it is                                                      costs
=========================  ==============================================================  ==========================
``activations``            the layer's output, batch x channel x space                     the forward pass
``activations_of_layers``  those of all layers asked about, the last to run first          the forward pass
``class_weights``          the score's weight on each channel of a pooled linear head      the forward pass
``scores``                 what is explained, one an image                                 the forward pass
``images``                 the model's input, batch x colour x pixels                      the forward pass
``gradients``              the score's gradient by ``activations``, of the same shape      + the head, backward
``curvature``              the score's Hessian by ``activations``, times ``activations``   + the head, twice more
``gradients_of_maps``      asks for gradients at other maps: see :class:`Query`              + the head, each
``gradients_of_images``    asks for activations and gradients of other images              + the model, each
``rescore_maps``           asks for scores of other maps                                   + the head, each
``rescore_images``         asks for scores of other images                                 + the model, each
``input_gradients``        asks for gradients by the input, of other images                + the model, each, both ways
``guided_gradients``       the gradient by the input, guided through every ReLU            + the model, backward
``bias_gradients``         every layer's bias times its gradient, and the input's          + the model, backward
``attention``              every block's attention over the patches: see ``_attention.py``  + the model
``attention_gradients``    the score's gradients by the weights of every block             + the model, backward
``output_gradients``       the score's gradients by what every block's attention puts out  + the model, backward
``own_gradients``          those of each block's own score, by its weights or its pooler's + the head each, both ways
=========================  ==============================================================  ==========================

What comes back is the raw map, or what is still to be added up over the channels, of the shape of ``activations``. A method that
asks is called for one image at a time, with a batch of one. A new kind of evidence is a row here, a word in ``EVIDENCE`` and a
method of ``Evidence`` in ``evidence.py``.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._spectral import principal_component
from glowmap.methods.smoothing import SMOOTHING
from glowmap.registry import Registry, near_names
from glowmap.shapes import RawMaps

EVIDENCE = {
    "activations": "1 forward",
    "activations_of_layers": "1 forward",
    "class_weights": "1 forward",
    "scores": "1 forward",
    "images": "1 forward",
    "gradients": "1 backward of the head",
    "curvature": "2 more of the head",
    "gradients_of_maps": "many of the head, both ways",
    "gradients_of_images": "many, both ways",
    "rescore_maps": "many forwards of the head",
    "rescore_images": "many forwards",
    "input_gradients": "many, both ways",
    "guided_gradients": "1 backward",
    "bias_gradients": "1 backward",
    "attention": "1 forward again",
    "attention_gradients": "1 backward",
    "output_gradients": "1 backward",
    "own_gradients": "1 of the head a block, both ways",
}
# Evidence that is a function to ask, for one image.
ASKING = frozenset({"gradients_of_maps", "gradients_of_images", "rescore_maps", "rescore_images", "input_gradients"})
# Evidence about the input, for which no layer is looked at.
OF_THE_INPUT = frozenset({"images", "rescore_images", "input_gradients", "guided_gradients", "bias_gradients"})
# Evidence about the tokens that attend, whichever layer they come from.
OF_ATTENTION = frozenset({"attention", "attention_gradients", "output_gradients", "own_gradients"})
# Named in errors where a model has no gradients.
GRADIENT_FREE = "a method that needs no gradients: eigen_cam, score_cam, occlusion, rise"
Make: TypeAlias = Callable[[slice], Tensor]


@runtime_checkable
class Query(Protocol):
    """Ask the model about ``count`` changed inputs of one image, made a chunk at a time so that they never lie in memory at once.

    ``make`` gets a slice of ``range(count)`` and returns so many inputs: maps or images. The answer has ``count`` rows.
    """

    def __call__(self, count: int, make: Make) -> Any: ...


@dataclass(frozen=True)
class Method:
    """A member of the shelf: the function, what it needs, when to use it, where it comes from, and how its knobs are set."""

    name: str
    function: Callable[..., RawMaps]
    needs: tuple[str, ...]
    parameters: Mapping[str, Any]
    use: str
    paper: str
    passes: str = ""  # that it takes beside the first, where its evidence does not tell
    pools: bool = False  # it weighs whole channels by an average of their gradients, so it fits heads that pool
    chosen: Mapping[str, Any] = field(default_factory=dict)
    principal: bool = False  # the channels' first principal component in the place of their sum

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring."""
        return inspect.getdoc(self.function).split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr] # put() checks

    @property
    def cost(self) -> str:
        """What the evidence costs, in passes of the model."""
        if self.passes:
            return f"1 forward + {self.passes}"
        prices = [cost for evidence, cost in EVIDENCE.items() if evidence in self.needs]
        return " + ".join(dict.fromkeys(["1 forward", *prices]))

    @cached_property
    def asks(self) -> bool:
        """Whether it asks the model again, and so is called for one image at a time."""
        return bool(ASKING & set(self.needs))

    @property
    def joins_layers(self) -> bool:
        """Whether it makes one map of all layers asked about."""
        return "activations_of_layers" in self.needs

    @cached_property
    def at_input(self) -> bool:
        """Whether its maps lie on the input, so that no layer is looked at."""
        return not {*self.needs} - OF_THE_INPUT - {"scores"}

    @cached_property
    def of_attention(self) -> bool:
        """Whether its maps lie on the patches that attend, so that no layer is looked at."""
        return bool(OF_ATTENTION & set(self.needs)) and not {*self.needs} - OF_ATTENTION - OF_THE_INPUT - {"scores"}

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
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
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
    *, paper: str, use: str, passes: str = "", pools: bool = False
) -> Callable[[Callable[..., RawMaps]], Callable[..., RawMaps]]:
    """Put a function on the shelf under its own name; a parameter that names no evidence is a TypeError at import.

    ``passes`` says what a method that asks costs beside the first forward pass, with its default knobs; ``pools`` that it weighs
    whole channels by an average of their gradients.
    """

    def put(function: Callable[..., RawMaps]) -> Callable[..., RawMaps]:
        signature = inspect.signature(function).parameters
        parameters = {name: one.default for name, one in signature.items() if one.kind is one.KEYWORD_ONLY}
        needs = tuple(name for name in signature if name not in parameters)
        for parameter in needs:
            if parameter not in EVIDENCE:
                raise TypeError(
                    f"{function.__name__} asks for {parameter!r}; a method may ask for {', '.join(EVIDENCE)}"
                )
        if not inspect.getdoc(function):
            raise TypeError(f"{function.__name__} has no docstring; its first sentence is what users choose by")
        METHODS.register(
            function.__name__, Method(function.__name__, function, needs, parameters, use, paper, passes, pools)
        )
        return function

    return put


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
