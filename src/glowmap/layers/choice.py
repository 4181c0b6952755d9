"""What is asked when a layer is looked for, what is chosen, and why there may be nothing to choose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glowmap.layers.layout import Grid, Layout


@dataclass(frozen=True)
class LayerScore:
    """What is asked of a model's output: a score, how many classes there are where that is known, and what it speaks of."""

    score: Tensor
    classes: int | None = None
    places: bool = False  # every pixel, or every box of a grid
    boxes: bool = False  # a set of boxes
    own: bool = False  # the score is the user's own, and may mean a single place
    parts: Sequence[Tensor] = ()  # that it is the sum of, where each of them is to go through the layer


@dataclass(frozen=True)
class Choice:
    """A layer worth looking at: its layout, the share of its places where the score has a gradient, and why it is taken."""

    name: str
    kind: str
    channels: int
    layout: Layout
    coverage: float
    reason: str
    certain: bool = True  # nothing speaks against it: else every explanation says so
    runners_up: tuple["Choice", ...] = ()

    @property
    def grid(self) -> Grid:
        """The layer's rows and columns."""
        return self.layout.grid

    @property
    def doubts(self) -> tuple[str, ...]:
        """What to mind before trusting a map of this layer."""
        return () if self.certain else (f"no layer was named, and {self.name!r} was found: {self.reason}",)

    @property
    def covered(self) -> str:
        """At which share of its places the score has a gradient, in words."""
        return "unknown" if math.isnan(self.coverage) else f"{self.coverage:.0%} of its places"

    def __str__(self) -> str:
        kind = f"{self.kind}, {self.channels} channels, {self.layout}"
        return f"{self.name} ({kind}): {self.reason}; gradient at {self.covered}"


def no_grid(model: nn.Module, seen: Sequence[str]) -> str:
    """Say why no layer was found, and what may be done instead."""
    name = getattr(model, "original_name", type(model).__name__)
    scripted = any(isinstance(part, torch.jit.ScriptModule) for part in model.modules())
    if scripted or "export" in type(model).__module__:
        return (
            f"the layers of {name} cannot be seen, as it was scripted, traced or exported; bring the module from before that, or "
            "use a method of the input: input_gradient, rise, occlusion"
        )
    return (
        f"no layer was found in {name} whose output could be read as a grid with a gradient at its places"
        + (f" ({'; '.join(seen)})" if seen else "")
        + "; name one (`glowmap layers` lists what there is), or use a method of the input: "
        "input_gradient, rise, occlusion"
    )


def no_gradient(model: nn.Module, connected: bool) -> str:
    """Say why the score has no gradient by the images: ``connected`` where there is a way back, on which it is zero."""
    name = type(model).__name__
    if connected:
        return (
            f"the score of {name} has no gradient anywhere, so no layer can be found by it: a head of zeros, or one that is "
            "saturated; load trained weights, or name a layer"
        )
    return (
        f"the score of {name} carries no gradient back to its images, so no layer can be found by it: the model or the target "
        "detaches it, runs under torch.no_grad() or torch.inference_mode(), or is quantised; name a layer, and a method that "
        "needs no gradient"
    )
