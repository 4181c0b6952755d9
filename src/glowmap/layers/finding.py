"""Find the layer worth looking at by evidence: where the score's gradient reaches, and where nothing of it goes past.

The rules, in the order in which they are tried:

- a classifier: the last output at whose places there is a gradient and through which *all* of the score's gradient by the
  picture goes; where a normalisation after it carries the whole gradient of its patches, that normalisation (a transformer
  that reads out a class token: the input of the last block's attention);
- a dense model or a detector: the encoder's end, that is, on the coarsest grid that holds a tenth of the parameters, the output
  with most channels through which all passes that goes through this grid;
- else the last output with a gradient at most of its places.

Any output but a convolution's must prove its layout: its cells must depend on the picture where the layout has them.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.errors import LayerError
from glowmap.layers.layout import Grid, Layout, read_layout, token_layouts, witness
from glowmap.layers.proving import carries, coverage, gradients, offset, proven
from glowmap.layers.tracing import Put, Traced, traced
from glowmap.shapes import crossed

_COVERED = 0.5  # the share of places that must have a gradient
_LATE = 0.5  # of the outputs must have run before one that counts as the last that all evidence goes through
_HOLDS = 0.1  # the share of parameters from which on a grid is one of the encoder's own
_TRIES = 40
_SHOWN = 6


@dataclass(frozen=True)
class Asked:
    """What is asked of a model's output: a score, how many classes there are where that is known, and whether it is dense."""

    score: Tensor
    classes: int | None = None
    places: bool = False  # the model answers for places: pixels, boxes


@dataclass(frozen=True)
class Choice:
    """A layer worth looking at: its layout, the share of its places where the score has a gradient, and why it is taken."""

    name: str
    kind: str
    channels: int
    layout: Layout
    coverage: float
    reason: str
    runners_up: tuple["Choice", ...] = ()

    @property
    def grid(self) -> Grid:
        """The layer's rows and columns."""
        return self.layout.grid

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, {self.channels} channels, {self.layout}): {self.reason}; " + (
            "no gradient" if math.isnan(self.coverage) else f"gradient at {self.coverage:.0%} of its places"
        )


@dataclass
class _Candidate:
    put: Put
    layout: Layout
    sure: bool  # its layout needs no proof
    gradient: Tensor
    coverage: float
    why_not: str = ""
    checked: dict[str, bool] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        return self.layout.maps(self.put.tensor).shape[1]

    def choice(self, reason: str) -> Choice:
        return Choice(self.put.name, self.put.kind, self.channels, self.layout, self.coverage, reason)


def find_layer(
    model: nn.Module,
    images: Tensor,
    call: Callable[[Tensor], Any],
    ask: Callable[[Any], Asked],
    *,
    blindly: bool = False,
) -> Choice:
    """Find the layer worth looking at for images of this shape: one pass forward, and a few backward to prove the choice.

    ``call`` runs the (borrowed) model on images that need a gradient, ``ask`` makes a score of its output. Raises LayerError
    where there is none, with what was seen; ``blindly`` takes the last output with a grid where there are no gradients.
    """
    leaf = images.detach().clone().requires_grad_()
    with traced(model) as trace:
        output = call(leaf.clone())  # as the model may write into its input
    asked = ask(output)
    (whole,) = gradients(asked.score, [leaf])
    if whole is None or not whole.any():
        if blindly:
            return _last_grid(model, leaf, trace)
        raise LayerError(_no_gradient(model, whole is not None))
    return _Search(model, leaf, trace, asked, whole).choice()


def _last_grid(model: nn.Module, images: Tensor, trace: Traced) -> Choice:
    for put in reversed(trace.puts):
        with suppress(LayerError):
            layout = read_layout(put.tensor.shape, put.name, witness(model, put.names[0]), images, trace.grids)
            if not (put.makes_nothing or put.half_way):
                channels = layout.maps(put.tensor).shape[1]
                return Choice(
                    put.name,
                    put.kind,
                    channels,
                    layout,
                    math.nan,
                    "the last with a grid, as there is no gradient to go by",
                )
    raise LayerError(
        f"no layer of {type(model).__name__} puts out a grid that could be seen; use a method of the input: rise, occlusion"
    )


class _Search:
    def __init__(self, model: nn.Module, images: Tensor, trace: Traced, asked: Asked, whole: Tensor) -> None:
        self.images, self.trace, self.asked, self.whole = images, trace, asked, whole
        slopes = gradients(asked.score, [put.tensor for put in trace.puts])
        reached = [(put, slope) for put, slope in zip(trace.puts, slopes, strict=True) if slope is not None]
        found = [self._candidate(model, put, slope) for put, slope in reached]
        self.candidates = [one for one in found if one is not None]

    def _candidate(self, model: nn.Module, put: Put, slope: Tensor) -> _Candidate | None:
        shape, batch, pixels = put.tensor.shape, len(self.images), tuple(self.images.shape[2:])
        try:
            layout = read_layout(shape, put.name, witness(model, put.names[0]), self.images, self.trace.grids)
        except LayerError:
            longest = [grid for grid in self.trace.grids if len(grid) == len(pixels)]
            if len(shape) != 3 or shape[0] != batch or self.images.ndim == 3 or not longest:
                return None
            # a grid of patches may stand anywhere among other tokens; where, its gradients tell
            patches = max(longest, key=lambda grid: torch.Size(grid).numel() * (torch.Size(grid).numel() < shape[1]))
            if torch.Size(patches).numel() >= shape[1]:
                return None
            return _Candidate(put, Layout("tokens", patches, -1), False, slope, 0.0)
        sure = layout.kind == "channels first" and len(pixels) > 1
        return _Candidate(put, layout, sure, slope, coverage(slope, layout))

    def choice(self) -> Choice:
        rules = (self._encoder_end, self._last_cut) if self.asked.places else (self._last_cut, self._encoder_end)
        for rule in (*rules, self._last_covered):
            found = rule()
            if found is not None:
                best, reason = found
                return replace(best.choice(reason), runners_up=self._runners_up(best))
        raise LayerError(
            "no layer was found whose output could be read as a grid with a gradient at its places"
            + (": " + "; ".join(f"{c.put.name}: {c.why_not}" for c in self.candidates[-3:]) if self.candidates else "")
            + "; name one: layer=... (`glowmap layers` lists what there is)"
        )

    def _runners_up(self, best: _Candidate) -> tuple[Choice, ...]:
        others = [one for one in reversed(self.candidates) if one is not best and one.layout.before >= 0]
        seen = [one.choice(one.why_not or "an earlier layer, which would do") for one in others]
        return tuple(seen[:_SHOWN])

    # -- what rules a candidate out --------------------------------------------------------------------------------

    def _fits(self, one: _Candidate, covered: float = _COVERED) -> bool:
        """Rule out what has no gradient at its places, makes nothing, or is half of a step; and note why."""
        if "fits" not in one.checked:
            one.why_not = self._why_not(one, covered)
            one.checked["fits"] = not one.why_not
        return one.checked["fits"]

    def _why_not(self, one: _Candidate, covered: float) -> str:
        if one.put.makes_nothing:
            return "pooling, resizing or another order of what came in"
        if one.put.half_way:
            return "the bare product of a linear layer"
        if one.layout.before < 0 and not self._placed(one):
            return "tokens of no grid"
        if one.coverage < covered:
            return f"the score has a gradient at {one.coverage:.0%} of its places only"
        if one.channels == self.asked.classes and not self.trace.parametric_after(one.put):
            return "the class scores themselves, place by place"
        return ""

    def _placed(self, one: _Candidate) -> bool:
        layout = offset(one.put.tensor, one.layout, self.images)
        if layout is not None:
            one.layout, one.coverage = layout, coverage(one.gradient, layout)
        return layout is not None

    def _proven(self, one: _Candidate) -> bool:
        """Prove a layout, or find another that is."""
        if one.sure:
            return True
        if "proven" not in one.checked:
            one.checked["proven"] = any(self._reads(one, layout) for layout in self._readings(one))
            if not one.checked["proven"]:
                one.why_not = "its cells do not look where a grid would have them"
        return one.checked["proven"]

    def _reads(self, one: _Candidate, layout: Layout) -> bool:
        if not proven(one.put.tensor, layout, self.images):
            return False
        one.layout, one.coverage = layout, coverage(one.gradient, layout)
        return True

    def _readings(self, one: _Candidate) -> Sequence[Layout]:
        shape, pixels = one.put.tensor.shape, tuple(self.images.shape[2:])
        others = token_layouts(shape, len(self.images), pixels, self.trace.grids)
        if len(shape) == self.images.ndim:
            others += [Layout("channels first", tuple(shape[2:])), Layout("channels last", tuple(shape[1:-1]))]
        return list(dict.fromkeys([one.layout, *others]))[:4]

    # -- the rules -------------------------------------------------------------------------------------------------

    def _last_cut(self) -> tuple[_Candidate, str] | None:
        late = self.candidates[int(_LATE * len(self.candidates)) :]
        tries = [one for one in reversed(late) if self._fits(one)][:_TRIES]
        for one in tries:
            if not carries(one.put.tensor, one.gradient, self.images, self.whole):
                one.why_not = "some of the evidence goes past it"
            else:
                after = self._normalised(one)
                if after is not None or self._proven(one):
                    return after or (one, "the last that all evidence goes through")
        return None

    def _normalised(self, cut: _Candidate) -> tuple[_Candidate, str] | None:
        """Find a normalisation after the cut through which all goes that its patches say: their class token aside."""
        after = [one for one in self.candidates if one.put.order > cut.put.order]
        for one in after:
            vectors = all(parameter.ndim == 1 for parameter in one.put.modules[0].parameters())
            same = one.layout == cut.layout and one.put.tensor.shape == cut.put.tensor.shape
            if not (vectors and same and one.coverage >= _COVERED and not one.put.makes_nothing):
                continue
            if carries(one.put.tensor, one.gradient, cut.put.tensor, cut.gradient, cut.layout) and self._proven(one):
                return one, "the last that all evidence of the patches goes through"
        return None

    def _encoder_end(self) -> tuple[_Candidate, str] | None:
        fitting = [one for one in self.candidates if one.layout.before >= 0]
        held: dict[Grid, int] = {}
        for one in fitting:
            held[one.layout.grid] = held.get(one.layout.grid, 0) + self.trace.weighed[one.put.order]
        own = [grid for grid, weight in held.items() if weight >= _HOLDS * sum(held.values())]
        for grid in sorted(own, key=lambda grid: torch.Size(grid).numel()):
            level = [one for one in fitting if one.layout.grid == grid and one.coverage > 0]
            # most channels; of equals the outermost module, then the last
            ends = sorted(level, key=lambda one: (-one.channels, one.put.name.count("."), -one.put.order))
            for one in ends:
                if self._fits(one) and self._passes_all(one, level[0]) and self._proven(one):
                    return one, f"the encoder's end: all that goes through its grid of {crossed(grid)} goes through it"
        return None

    def _passes_all(self, one: _Candidate, source: _Candidate) -> bool:
        return one is source or carries(one.put.tensor, one.gradient, source.put.tensor, source.gradient)

    def _last_covered(self) -> tuple[_Candidate, str] | None:
        for one in [one for one in reversed(self.candidates) if self._fits(one)][:_TRIES]:
            if self._proven(one):
                return one, "the last with a gradient at its places, though some evidence goes past it"
        return None


def _no_gradient(model: nn.Module, connected: bool) -> str:
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
