"""The score that a layer search differentiates, the layer that it finds, and the errors where there is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glowmap.cautions import Caution, caution_kind
from glowmap.layers.layout import Grid, Layout

LAYER_UNCERTAIN = caution_kind(
    "layer-uncertain",
    "caution",
    "Name a layer, or look at the runners-up: glowmap.Explainer(model).find(images).runners_up.",
)


@dataclass(frozen=True)
class LayerScore:
    """The scalar that a layer search differentiates, and what the model's output is about."""

    score: Tensor
    classes: int | None = None  # how many there are, where that is known
    is_dense: bool = False  # a score for every pixel, or for every box of a grid
    has_boxes: bool = False
    is_of_target: bool = False  # the target's own score, which may be about a single place
    parts: Sequence[Tensor] = ()  # whose sum it is, where each is to go through the layer
    canvas: Grid | None = None  # the size in pixels that the layers cover, where the model pads its input inside


@dataclass(frozen=True)
class Choice:
    """A layer to explain: its layout, the share of its cells where the score has a gradient, and the reason to take it."""

    name: str
    kind: str
    channels: int
    layout: Layout
    coverage: float
    reason: str
    certain: bool = True  # False: every explanation says what speaks against it
    runners_up: tuple["Choice", ...] = ()

    @property
    def grid(self) -> Grid:
        """The layer's rows and columns."""
        return self.layout.grid

    @property
    def cautions(self) -> tuple[Caution, ...]:
        """What to know before trusting a map of this layer."""
        if self.certain:
            return ()
        return (LAYER_UNCERTAIN(f"no layer was named, and {self.name!r} was found: {self.reason}"),)

    @property
    def covered(self) -> str:
        """The share of its cells where the score has a gradient, in words."""
        return "unknown" if math.isnan(self.coverage) else f"{self.coverage:.0%} of its places"

    def __str__(self) -> str:
        kind = f"{self.kind}, {self.channels} channels, {self.layout}"
        return f"{self.name} ({kind}): {self.reason}; gradient at {self.covered}"


def no_grid(model: nn.Module, tried: Sequence[str]) -> str:
    """Return the message for a model in which no layer was found, with the reasons against the layers that were tried."""
    name = getattr(model, "original_name", type(model).__name__)
    is_scripted = any(isinstance(part, torch.jit.ScriptModule) for part in model.modules())
    if is_scripted or "export" in type(model).__module__:
        return (
            f"the layers of {name} cannot be seen, as it was scripted, traced or exported; bring the module from before that, or "
            "use a method of the input: input_gradient, rise, occlusion"
        )
    return (
        f"no layer was found in {name} whose output could be read as a grid with a gradient at its places"
        + (f" ({'; '.join(tried)})" if tried else "")
        + "; name one (`glowmap layers` lists what there is), or use a method of the input: "
        "input_gradient, rise, occlusion"
    )


def no_gradient(model: nn.Module, *, is_connected: bool) -> str:
    """Return the message for a score without a gradient with respect to the images.

    ``is_connected`` says that the score depends on the images, with a gradient of zero.
    """
    name = type(model).__name__
    if is_connected:
        return (
            f"the score of {name} has no gradient anywhere, so no layer can be found by it: a head of zeros, or one that is "
            "saturated; load trained weights, or name a layer"
        )
    return (
        f"the score of {name} carries no gradient back to its images, so no layer can be found by it: the model or the target "
        "detaches it, runs under torch.no_grad() or torch.inference_mode(), or is quantised; name a layer, and a method that "
        "needs no gradient"
    )
