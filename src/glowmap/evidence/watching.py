"""Watch layers whose output a question reads, and lay that out as images x channel x places."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from glowmap import tree
from glowmap.capture import KeepOutput, keep_intermediates, record
from glowmap.capture.call import called
from glowmap.errors import LayerError, Remedy
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.inputs import Batch
from glowmap.layers import Layout, find_layers
from glowmap.layers.cache import LayerHints, checked_layout, gather_grids, grids_of
from glowmap.models import Model
from glowmap.targets import LayerOutput


def watched(model: Model, batch: Batch, names: Sequence[str]) -> Model:
    """Have a (borrowed) model keep what these layers put out, as a :class:`LayerOutput` for each of their runs.

    How a layer lies is found out beforehand, in a forward pass for each. Raises LayerError for a layer that is not there, and
    later, when the model is run, for one whose output cannot be read as images x channel x places.
    """
    parts: dict[str, tuple[nn.Module, KeepOutput]] = {}
    cautions = list(model.cautions)
    for name in names:
        ((known, layer),) = find_layers(model.module, name).items()
        reading = _reading(model, batch, known, layer)
        parts[name] = layer, reading.kept
        if reading.unproven:
            cautions.append(
                f"the output of layer {name!r}, which is asked about, was read as {reading.layout}, which could not be proven by "
                "where its cells look"
            )

    @contextmanager
    def entered(module: nn.Module) -> Iterator[None]:
        with model.around_forward(module), keep_intermediates(module, parts):
            yield

    return replace(model, around_forward=entered, cautions=tuple(cautions))


@dataclass(frozen=True)
class _Reading:
    """How a layer's output is read: which of its tensors, how it lies, or why it has no places."""

    name: str
    part: int = 0
    shape: tuple[int, ...] = ()  # for which the layout was found
    layout: Layout | None = None
    why_not: LayerError | None = None
    unproven: bool = False

    def kept(self, _arguments: Any, _keywords: Any, output: Any) -> LayerOutput:
        """Lay an output out as images x channel (x places)."""
        tensors = [one for one in tree.leaves(output) if one.is_floating_point()]
        if self.layout is None:
            flat = [one for one in tensors if one.ndim >= 2 and one[0, 0].numel() == 1]
            if len(tensors) != 1 or not flat:
                raise self.why_not or LayerError(f"layer {self.name!r} puts out no tensor")
            return LayerOutput(flat[0], flat[0].flatten(1))
        laid = [one for one in tensors if one.ndim >= 3]
        if self.part >= len(laid):
            raise LayerError(f"layer {self.name!r} puts out no maps where the question reads it; name another layer")
        output = laid[self.part]
        axis = {"tokens": 1, "tokens first": 0, "channel tokens": 2}.get(self.layout.kind)
        if axis is not None and output.shape[axis] != self.shape[axis]:
            raise LayerError(
                f"layer {self.name!r} puts out {output.shape[axis]} tokens for a changed image and {self.shape[axis]} for the "
                "image itself",
                remedy=Remedy("leave out what changes the image's size (smooth='scales')"),
            )
        return LayerOutput(output, self.layout.maps(output))


def _reading(model: Model, batch: Batch, name: str, layer: nn.Module) -> _Reading:
    """Run the model once and find out how a layer's output lies."""
    module = model.module
    # watched from inside the recording, as when the question is put: what lays patches out comes first
    with model.around_forward(module), gather_grids(module, batch), record({name: layer}, graph=False) as recording:
        run = ForwardPass(module, batch, {name: layer}, recording, partial(model.read_output, batch=batch))
        run.grids = lambda: (*model.token_grids(batch), *grids_of(module, batch))
        run.check = partial(
            checked_layout,
            module,
            batch,
            told=LayerHints(tuple(model.token_grids(batch)), among=model.patch_positions(batch)),
        )
        try:
            run.output = called(module, batch.copied())
            run.recorded()
            layout = run.layout(name)
        except LayerError as error:  # of no places, or it did not run: what is asked of it will tell
            return _Reading(name, why_not=error)
    seen = recording[name]
    return _Reading(name, seen.part, tuple(seen.output.shape), layout, unproven=name in run.unproven)
