"""Keep the outputs of layers that a target reads, laid out as images x channels x grid."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from glowmap import tree
from glowmap.capture import KeepOutput, call_model, keep_intermediates, record
from glowmap.errors import LayerError, Remedy
from glowmap.evidence.forward_pass import UNPROVEN_LAYOUT
from glowmap.evidence.session import Session
from glowmap.inputs import Batch
from glowmap.layers import Layout, find_layers
from glowmap.models import Model
from glowmap.targets import LayerOutput


def with_layer_outputs(model: Model, batch: Batch, names: Sequence[str]) -> Model:
    """Return a borrowed model that keeps the outputs of these layers, as a :class:`LayerOutput` for each run of a layer.

    The layout of each is found in a forward pass of its own. Raises LayerError for a layer that does not exist and, when the
    model runs, for one whose output cannot be read as images x channels x grid.
    """
    parts: dict[str, tuple[nn.Module, KeepOutput]] = {}
    cautions = list(model.cautions)
    for name in names:
        ((known_name, layer),) = find_layers(model.module, name).items()
        reader = _output_reader(model, batch, known_name, layer)
        parts[name] = layer, reader.read
        if reader.is_unproven:
            cautions.append(
                UNPROVEN_LAYOUT(
                    f"the output of layer {name!r}, which the target reads, was read as {reader.layout}, which could not be "
                    "proven by where its cells look"
                )
            )

    @contextmanager
    def around_forward(module: nn.Module) -> Iterator[None]:
        with model.around_forward(module), keep_intermediates(module, parts):
            yield

    return replace(model, around_forward=around_forward, cautions=tuple(cautions))


@dataclass(frozen=True)
class _OutputReader:
    """Reads a layer's output: which of its tensors, in which layout, or why it has no grid."""

    name: str
    part: int = 0
    shape: tuple[int, ...] = ()  # for which the layout was found
    layout: Layout | None = None
    why_not: LayerError | None = None
    is_unproven: bool = False

    def read(self, _arguments: Any, _keywords: Any, output: Any) -> LayerOutput:
        """Return an output as images x channels (x grid)."""
        tensors = [tensor for tensor in tree.leaves(output) if tensor.is_floating_point()]
        if self.layout is None:
            flat = [tensor for tensor in tensors if tensor.ndim >= 2 and tensor[0, 0].numel() == 1]
            if len(tensors) != 1 or not flat:
                raise self.why_not or LayerError(f"layer {self.name!r} returns no tensor; name another layer")
            return LayerOutput(flat[0], flat[0].flatten(1))
        maps = [tensor for tensor in tensors if tensor.ndim >= 3]
        if self.part >= len(maps):
            raise LayerError(f"layer {self.name!r} returns no maps where the target reads them; name another layer")
        tensor, axis = maps[self.part], self.layout.token_axis
        if axis is not None and tensor.shape[axis] != self.shape[axis]:
            raise LayerError(
                f"layer {self.name!r} puts out {tensor.shape[axis]} tokens for a changed image and {self.shape[axis]} for the "
                "image itself",
                remedy=Remedy("leave out what changes the image's size (smooth='scales')"),
            )
        return LayerOutput(tensor, self.layout.maps(tensor))


def _output_reader(model: Model, batch: Batch, name: str, layer: nn.Module) -> _OutputReader:
    """Run the model once and find out the layout of a layer's output."""
    module = model.module
    layouts = Session(model, batch).layouts
    # the model is read inside the recording, as when the target is scored: what lays patches out comes first
    with model.around_forward(module), layouts.gathering_grids(), record({name: layer}, graph=False) as recording:
        try:
            recording.settle(tree.leaves(call_model(module, batch.copied())))
            activation = recording[name]
            layout = layouts.layout(name, activation.output.shape)
        except LayerError as error:  # it has no grid, or did not run: reading it will tell
            return _OutputReader(name, why_not=error)
    shape = tuple(activation.output.shape)
    return _OutputReader(name, activation.part, shape, layout, is_unproven=name in layouts.unproven)
