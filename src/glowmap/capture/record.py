"""Record what layers computed, with no autograd graph below the first of them, and ask for gradients at them.

Hooks stay only as long as a forward pass (:func:`record`).
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.errors import LayerError, ModelError, TargetError, told
from glowmap.shapes import Scores, crossed
from glowmap.structure import replaced, tensors_in


@dataclass
class Seen:
    """What one layer left behind: its output, in the graph that leads on from there, and how often it ran."""

    output: Tensor
    calls: int
    version: int  # of the output when it was recorded; a later one means that it was overwritten in place
    in_no_grad: bool  # the model switched gradients off around the layer


class Recording:
    """The outputs of the recorded layers, by name, in the order in which they were asked for."""

    def __init__(self, names: list[str], *, graph: bool = True) -> None:
        self.names = names
        self._graph = graph
        self._seen: dict[str, Seen] = {}

    def __getitem__(self, name: str) -> Seen:
        if name not in self._seen:
            raise LayerError(
                f"layer {name!r} did not run in this forward pass; name one that does "
                "(compiled and scripted modules run without hooks: bring the module from before compilation)"
            )
        seen = self._seen[name]
        if seen.output._version != seen.version:
            raise LayerError(
                f"the output of layer {name!r} is overwritten in place later in the model, so its record is spoiled; "
                "name the module that overwrites it, or one before"
            )
        return seen

    def in_order(self) -> list[str]:
        """List the layers in the order in which they ran. LayerError for one that did not."""
        for name in self.names:
            self[name]
        return list(self._seen)

    def keep(self, name: str, output: Any) -> Any:
        """Keep the maps in a layer's output and hand the model a clone of them, so that in-place operations spoil nothing."""
        maps = maps_in(output, name)
        if not self._graph:  # nobody will ask for gradients
            copied = maps.detach().clone()
            self._put(name, Seen(copied, 1, copied._version, in_no_grad=False))
            return output
        # The model may run the layer under no_grad; its result is the place where our graph begins all the same.
        in_no_grad = not torch.is_grad_enabled()
        with torch.enable_grad():
            # A view of its own: the same tensor may also reach the score past the layer, over a skip connection.
            kept = maps.view_as(maps) if maps.requires_grad else maps.detach().requires_grad_()
            passed_on = kept.clone()
        self._put(name, Seen(kept, 1, kept._version, in_no_grad))
        return replaced(output, maps, passed_on)

    def _put(self, name: str, seen: Seen) -> None:
        before = self._seen.pop(name, None)  # the last run counts, also for the order
        seen.calls += before.calls if before else 0
        self._seen[name] = seen

    def gradients(self, scores: Scores, *, keep_graph: bool = False) -> dict[str, Tensor]:
        """Differentiate each image's score by every recorded layer, in one backward pass that ends at the first of them.

        Raises TargetError where the scores carry no gradient, LayerError for a layer that they do not depend on.
        """
        outputs = [self[name].output for name in self.names]
        if not scores.requires_grad:
            raise TargetError(f"the score carries no gradient to {_listed(self.names)}; {self._why_cut()}")
        try:
            gradients = torch.autograd.grad(
                scores, outputs, torch.ones_like(scores), retain_graph=keep_graph, allow_unused=True
            )
        except RuntimeError as error:
            raise ModelError(f"the backward pass to {_listed(self.names)} raised {told(error)}") from error
        for name, gradient in zip(self.names, gradients, strict=True):
            if gradient is None:
                raise LayerError(f"the score does not depend on layer {name!r}; {self._why_cut()}")
        return dict(zip(self.names, gradients, strict=True))

    def curvature(self, scores: Scores, name: str) -> Tensor:
        """Multiply the scores' Hessian by a layer's output with that output: two more passes back to this layer.

        Raises as :meth:`gradients` does, and ModelError where an operation of the head has no second derivative.
        """
        output = self[name].output
        (gradient,) = self._twice(scores.sum(), output, name, create_graph=True)
        if gradient is None:
            raise LayerError(f"the score does not depend on layer {name!r}; {self._why_cut()}")
        if not gradient.requires_grad:
            return torch.zeros_like(output)  # a linear head, or one of pieces that are: no curvature
        (product,) = self._twice((gradient * output.detach()).sum(), output, name, create_graph=False)
        return torch.zeros_like(output) if product is None else product.detach()

    def _twice(self, scores: Tensor, output: Tensor, name: str, *, create_graph: bool) -> Any:
        try:
            return torch.autograd.grad(scores, output, retain_graph=True, create_graph=create_graph, allow_unused=True)
        except RuntimeError as error:
            raise ModelError(
                f"the second derivative at layer {name!r} raised {told(error)}; use a method that needs the first alone"
            ) from error

    def _why_cut(self) -> str:
        if any(self[name].in_no_grad for name in self.names):
            return "the model runs it under torch.no_grad(); remove that, or name a layer after it"
        return (
            "either what the layer computes is not used for this score, or the model or the target detaches it on the way; "
            "name a layer on the way from the picture to the score"
        )


@contextmanager
def record(layers: Mapping[str, nn.Module], *, graph: bool = True) -> Iterator[Recording]:
    """Record these layers in the forward pass that is run inside; the recording stays when the hooks are gone.

    The autograd graph begins at the first recorded layer that runs, given a model that is :func:`borrowed`; without ``graph``
    there is none.
    """
    recording = Recording(list(layers), graph=graph)
    with ExitStack() as hooked:
        for name, module in layers.items():
            try:
                handle = module.register_forward_hook(_keeping(recording, name))
            except RuntimeError as error:
                raise LayerError(
                    f"layer {name!r}, a {type(module).__name__}, takes no hooks; bring the module from before scripting"
                ) from error
            hooked.callback(handle.remove)
        yield recording


def _keeping(recording: Recording, name: str) -> Callable[[nn.Module, Any, Any], Any]:
    owner = threading.get_ident()

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        # another thread that runs the same module meanwhile is none of our business
        return recording.keep(name, output) if threading.get_ident() == owner else None

    return keep


def maps_in(output: Any, name: str) -> Tensor:
    """Find the one tensor in a layer's output that can be maps: floating point, with at least one axis after the channels."""
    maps = [tensor for tensor in tensors_in(output) if tensor.ndim >= 3 and tensor.is_floating_point()]
    if not maps:
        shapes = ", ".join(crossed(tensor.shape) for tensor in tensors_in(output)) or type(output).__name__
        raise LayerError(
            f"the output of layer {name!r} ({shapes}) has no spatial axes; name a layer before pooling and flattening"
        )
    if len(maps) > 1:
        shapes = ", ".join(crossed(tensor.shape) for tensor in maps)
        raise LayerError(
            f"layer {name!r} returns {len(maps)} maps ({shapes}); name a module inside it that returns one"
        )
    if maps[0].is_inference():
        raise LayerError(
            f"the model runs layer {name!r} under torch.inference_mode(), where no gradient can begin; "
            "remove that, or name a layer after it"
        )
    return maps[0]


def _listed(names: list[str]) -> str:
    return f"layer{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"
