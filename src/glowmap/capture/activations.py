"""Record the outputs of layers, with no autograd graph below the first of them, and differentiate scores by them.

Hooks stay only as long as a forward pass (:func:`record`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture.hooks import output_changed
from glowmap.cautions import Caution, caution_kind
from glowmap.errors import LayerError, ModelError, TargetError, summarise
from glowmap.shapes import Scores, crossed

SEVERAL_RUNS = caution_kind("several-runs", "info", "Name a run of the layer, such as body#1, to explain that one.")
SEVERAL_MAPS = caution_kind("several-maps", "info", "Name a module inside the layer to explain another of its outputs.")
UNDER_NO_GRAD = caution_kind(
    "under-no-grad", "caution", "Remove torch.no_grad() from the model, or name a later layer."
)
_NO_GRADIENTS = "a method that needs no gradients"


@dataclass
class Activation:
    """The recorded output of one layer, from which the graph leads on to the model's output."""

    output: Tensor
    version: int  # of the output when it was recorded; a later one means that it was overwritten in place
    in_no_grad: bool = False  # the model switched gradients off around the layer
    part: int = 0  # which of the layer's maps, where it returns more than one
    shapes: tuple[torch.Size, ...] = ()  # of all its maps
    run: int = 1  # which of its runs
    calls: int = 1  # how often it ran
    node: Any = None  # of the graph, through which the model's output depends on it

    def cautions(self, name: str) -> Iterator[Caution]:
        """Warn of other runs and other maps of the layer, and of what its gradients lack."""
        layer = name.partition("#")[0]
        if self.calls > 1:
            run = "its last run" if self.run == self.calls else f"run {self.run}"
            yield SEVERAL_RUNS(
                f"layer {layer!r} ran {self.calls} times; {run} is explained ({layer + '#1'!r} names the first)"
            )
        if len(self.shapes) > 1:
            shapes = ", ".join(map(crossed, self.shapes))
            yield SEVERAL_MAPS(
                f"layer {layer!r} returns {len(self.shapes)} maps ({shapes}); number {self.part + 1} of them is explained, on "
                "which alone the model's output depends"
            )
        if self.in_no_grad:
            yield UNDER_NO_GRAD(
                f"the model runs layer {name!r} under torch.no_grad(); what it computes from it there is missing in the gradients"
            )


@dataclass
class Recording:
    """The outputs of the recorded layers, by name. A name with a run, ``"body#2"``, is recorded at that run, others at the last.

    Without ``graph``, no gradients will be asked for. ``instead`` says in errors what works where there are none. ``model`` is
    searched for what cuts the graph.
    """

    names: list[str]
    graph: bool = True
    instead: str = _NO_GRADIENTS
    model: nn.Module | None = None
    _activations: dict[str, list[Activation]] = field(default_factory=dict)  # all maps, until one is known to be meant
    _calls: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Activation:
        """Return a layer's activation. Raises LayerError where it did not run, returns several maps, or was overwritten."""
        if name not in self._activations:
            raise LayerError(self._why_missing(name))
        activation, *others = self._activations[name]
        if others:
            raise LayerError(_too_many(name, activation.shapes))
        if activation.output._version != activation.version:
            raise LayerError(
                f"the output of layer {name!r} is overwritten in place later in the model, so its record is spoiled; "
                "name the module that overwrites it, or one before"
            )
        return activation

    def in_order(self) -> list[str]:
        """List the layers in the order in which they ran. Raises LayerError for one that did not run."""
        for name in self.names:
            self[name]
        return [name for name in self._activations if name in self.names]

    def keep(self, name: str, output: Any) -> Any:
        """Keep a layer's maps, and return its output with clones of them, so that in-place operations spoil nothing."""
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        run = name.partition("#")[2]
        if run and int(run) != calls:
            for activation in self._activations.get(name, []):
                activation.calls = calls
            return output
        maps = maps_in(output, name)
        shapes = tuple(tensor.shape for tensor in maps)
        self._activations.pop(name, None)  # the last run counts, also for the order
        if not self.graph and len(maps) == 1:
            self._activations[name] = [replace(_copied(maps[0]), shapes=shapes, run=calls, calls=calls)]
            return output
        if not self.graph and any(tensor.is_inference() or tensor.is_quantized for tensor in maps):
            raise LayerError(_too_many(name, shapes))
        begun = [self._begin_graph(tensor, name) for tensor in maps]
        self._activations[name] = [
            replace(activation, part=part, shapes=shapes, run=calls, calls=calls)
            for part, (activation, _) in enumerate(begun)
        ]
        if output is maps[0]:
            return begun[0][1]
        return tree.replace_each(output, maps, [passed_on for _, passed_on in begun])

    def forget(self, name: str) -> None:
        """Forget the run that was kept last, because another hook has replaced its output."""
        self._calls[name] -= 1

    def _begin_graph(self, maps: Tensor, name: str) -> tuple[Activation, Tensor]:
        """Begin the graph at a layer's maps. Returns the record, and the clone that the model goes on with."""
        if maps.is_quantized:
            raise LayerError(
                f"layer {name!r} puts out quantised numbers, where no gradient can begin; bring the model from before "
                f"quantisation, or use {self.instead}"
            )
        if maps.is_inference():
            raise LayerError(
                f"the model runs layer {name!r} under torch.inference_mode(), where no gradient can begin; remove that, name a "
                f"layer after it, or use {self.instead}"
            )
        # The model may run the layer under no_grad; the graph begins at its output all the same.
        in_no_grad = not torch.is_grad_enabled()
        with torch.enable_grad():
            # A view: the same tensor may also reach the score past the layer, over a skip connection.
            leaf = maps.view_as(maps) if maps.requires_grad else maps.detach().requires_grad_()
            passed_on = leaf.clone()
        return Activation(leaf, leaf._version, in_no_grad, node=passed_on.grad_fn), passed_on

    def settle(self, outputs: Iterable[Tensor]) -> None:
        """Where a layer returned several maps, keep the one on which these outputs depend, if it is one alone."""
        unsettled = [name for name, activations in self._activations.items() if len(activations) > 1]
        if not unsettled:
            return
        nodes = _nodes_behind(outputs)
        for name in unsettled:
            used = [activation for activation in self._activations[name] if activation.node in nodes]
            if len(used) == 1:
                self._activations[name] = used

    def gradients(
        self, scores: Scores, *, keep_graph: bool = False, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Differentiate each image's score by the layers (or those of ``names``), in one pass back to the first of them.

        Raises TargetError where the scores carry no gradient, LayerError for a layer that they do not depend on.
        """
        names = self.names if names is None else list(names)
        self.settle([scores])
        outputs = [self[name].output for name in names]
        if not scores.requires_grad:
            raise TargetError(f"the score carries no gradient to {_listed(names)}; {self._why_cut()}")
        try:
            gradients = torch.autograd.grad(
                scores, outputs, torch.ones_like(scores), retain_graph=keep_graph, allow_unused=True
            )
        except RuntimeError as error:
            raise ModelError(f"the backward pass to {_listed(names)} raised {summarise(error)}") from error
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is None:
                raise LayerError(f"the score does not depend on layer {name!r}; {self._why_cut()}")
        return dict(zip(names, gradients, strict=True))

    def curvature(self, scores: Scores, name: str) -> Tensor:
        """Multiply the scores' Hessian at a layer by the layer's output: two more passes back to this layer.

        Raises as :meth:`gradients` does, and ModelError where an operation of the head has no second derivative.
        """
        output = self[name].output
        (gradient,) = self._differentiate_twice(scores.sum(), output, name, create_graph=True)
        if gradient is None:
            raise LayerError(f"the score does not depend on layer {name!r}; {self._why_cut()}")
        if not gradient.requires_grad:
            return torch.zeros_like(output)  # the head is piecewise linear
        weighted = (gradient * output.detach()).sum()
        (product,) = self._differentiate_twice(weighted, output, name, create_graph=False)
        return torch.zeros_like(output) if product is None else product.detach()

    def _differentiate_twice(self, scores: Tensor, output: Tensor, name: str, *, create_graph: bool) -> Any:
        try:
            return torch.autograd.grad(scores, output, retain_graph=True, create_graph=create_graph, allow_unused=True)
        except RuntimeError as error:
            raise ModelError(
                f"the second derivative at layer {name!r} raised {summarise(error)}; use a method that needs the first alone"
            ) from error

    def _why_cut(self) -> str:
        if any(self[name].in_no_grad for name in self.names):
            return f"the model runs it under torch.no_grad(); remove that, name a layer after it, or use {self.instead}"
        modules = () if self.model is None else self.model.named_modules()
        quantised = next((name for name, module in modules if _is_quantised(module)), None)
        if quantised is not None:
            return f"part {quantised!r} of the model is quantised and passes no gradient; use {self.instead}"
        return (
            "either what the layer computes is not used for this score, or the model or the target detaches it on the way; "
            "name a layer on the way from the picture to the score"
        )

    def _why_missing(self, name: str) -> str:
        plain, calls = name.partition("#")[0], self._calls.get(name, 0)
        if calls:
            times = "once" if calls == 1 else f"{calls} times"
            return f"layer {plain!r} ran {times}, so it has no such run as {name!r}; name one of {plain}#1 to {plain}#{calls}"
        return (
            f"layer {plain!r} did not run in this forward pass; name one that does (parts of traced and exported models, "
            "and modules whose .forward() or .weight is used alone, run without hooks: for these use occlusion or rise)"
        )


@contextmanager
def record(
    layers: Mapping[str, nn.Module],
    *,
    graph: bool = True,
    instead: str = _NO_GRADIENTS,
    model: nn.Module | None = None,
) -> Iterator[Recording]:
    """Record the outputs of these layers in the forward pass inside this context; the recording stays valid after it.

    The autograd graph begins at the first recorded layer that runs, given a model that is lent by :func:`borrow`; with
    ``graph=False`` there is none. The other arguments are those of :class:`Recording`.
    """
    recording = Recording(list(layers), graph, instead, model)
    with ExitStack() as hooks:
        for name, module in layers.items():
            try:
                hooks.enter_context(
                    output_changed(module, partial(recording.keep, name), partial(recording.forget, name))
                )
            except RuntimeError as error:
                raise LayerError(
                    f"layer {name!r}, a {type(module).__name__}, takes no hooks; bring the module from before scripting, "
                    "or use a method of the input: occlusion, rise"
                ) from error
        yield recording


def maps_in(output: Any, name: str) -> list[Tensor]:
    """List the tensors in a layer's output that can be maps: real numbers with at least one axis after the channels.

    Raises LayerError where there is none.
    """
    tensors = [output] if isinstance(output, Tensor) else list(tree.leaves(output))
    maps = [tensor for tensor in tensors if tensor.ndim >= 3 and (tensor.is_floating_point() or tensor.is_quantized)]
    if not maps:
        shapes = ", ".join(crossed(tensor.shape) for tensor in tensors)
        raise LayerError(
            f"the output of layer {name!r} ({shapes or type(output).__name__}) has no spatial "
            "axes; name a layer before pooling and flattening"
        )
    return list({id(tensor): tensor for tensor in maps}.values())


def _copied(maps: Tensor) -> Activation:
    with torch.inference_mode(False):  # writes to inference tensors are not counted
        copied = maps.dequantize() if maps.is_quantized else maps.detach().clone()
    return Activation(copied, copied._version)


def _nodes_behind(outputs: Iterable[Tensor]) -> set[Any]:
    """Return all nodes of the graph that lead to these tensors."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    nodes: set[Any] = set(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in nodes:
                nodes.add(node)
                waiting.append(node)
    return nodes


def _is_quantised(module: nn.Module) -> bool:
    return "quantized" in type(module).__module__.split(".")


def _too_many(name: str, shapes: Sequence[torch.Size]) -> str:
    return (
        f"layer {name!r} returns {len(shapes)} maps ({', '.join(map(crossed, shapes))}), of which not one alone is known to lead "
        "to the model's output; name a module inside it that returns one"
    )


def _listed(names: list[str]) -> str:
    return f"layer{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"
