"""What a method is: a pure function from evidence to raw maps, whose parameter names say which evidence it needs.

The road makes only the evidence that the parameters name, so a method's cost can be read off its signature:

===============  ==================================================================  ==================
parameter        what it is                                                          costs
===============  ==================================================================  ==================
``activations``  the layer's output, batch x channel x space                         the forward pass
``gradients``    the score's gradient by ``activations``, of the same shape          + the head, backward
===============  ==================================================================  ==================

A new kind of evidence is a row here, a word in ``EVIDENCE`` and the line in ``road.py`` that makes it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from glowmap.errors import MethodError
from glowmap.shapes import RawMaps
from glowmap.shelf import Shelf

EVIDENCE = {
    "activations": "1 forward",
    "gradients": "+ 1 backward of the head",
}


@dataclass(frozen=True)
class Method:
    """A member of the shelf: the function, what it needs, and where it comes from."""

    name: str
    function: Callable[..., RawMaps]
    needs: tuple[str, ...]
    paper: str

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring."""
        return inspect.getdoc(self.function).split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr] # put() checks

    @property
    def price(self) -> str:
        """What the evidence costs, in passes of the model."""
        return " ".join(price for evidence, price in EVIDENCE.items() if evidence in self.needs)


METHODS: Shelf[Method] = Shelf("method", MethodError)


def method(*, paper: str) -> Callable[[Callable[..., RawMaps]], Callable[..., RawMaps]]:
    """Put a function on the shelf under its own name; a parameter that names no evidence is a TypeError at import."""

    def put(function: Callable[..., RawMaps]) -> Callable[..., RawMaps]:
        needs = tuple(inspect.signature(function).parameters)
        for parameter in needs:
            if parameter not in EVIDENCE:
                raise TypeError(
                    f"{function.__name__} asks for {parameter!r}; a method may ask for {', '.join(EVIDENCE)}"
                )
        if not inspect.getdoc(function):
            raise TypeError(f"{function.__name__} has no docstring; its first sentence is what users choose by")
        METHODS.put(function.__name__, Method(function.__name__, function, needs, paper))
        return function

    return put
