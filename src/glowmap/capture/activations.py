"""Record what layers computed, with no autograd graph below the first of them, and ask for gradients at them.

Hooks stay only as long as a forward pass (:func:`record`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture.hooks import output_changed
from glowmap.errors import LayerError, ModelError, TargetError, summarise
from glowmap.shapes import Scores, crossed

_NO_GRADIENTS = "a method that needs no gradients"


@dataclass
class Activation:
    """What one layer left behind: its output, in the graph that leads on from there, and how often it ran."""

    output: Tensor
    version: int  # of the output when it was recorded; a later one means that it was overwritten in place
    in_no_grad: bool = False  # the model switched gradients off around the layer
    part: int = 0  # which of the layer's maps, where it returns several
    returned: tuple[str, ...] = ()  # the shapes of all of them
    run: int = 1  # which of its runs
    calls: int = 1
    goes_on: Any = None  # the graph's node through which what comes after depends on it


class Recording:
    """The outputs of the recorded layers, by name, in the order in which they were asked for.

    A name with a run, ``"body#2"``, is recorded at that run, any other at the last.
    """

    def __init__(self, names: list[str], *, graph: bool = True, instead: str = _NO_GRADIENTS) -> None:
        self.names = names
        self.instead = instead  # of gradients, where there are none
        self.within: nn.Module | None = None  # the model, to find out what cuts its graph
        self._graph = graph
        self._seen: dict[str, list[Activation]] = {}  # more than one where it is not settled which is meant
        self._calls: dict[str, int] = {}

    def __getitem__(self, name: str) -> Activation:
        if name not in self._seen:
            raise LayerError(self._why_missing(name))
        seen, *others = self._seen[name]
        if others:
            raise LayerError(_too_many(name, seen.returned))
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
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        run = name.partition("#")[2]
        if run and int(run) != calls:
            for seen in self._seen.get(name, []):
                seen.calls = calls
            return output
        maps = maps_in(output, name)
        self._seen.pop(name, None)  # the last run counts, also for the order
        if not self._graph and len(maps) == 1:  # nobody will ask for gradients
            self._seen[name] = [replace(_copied(maps[0]), returned=_shapes(maps), run=calls, calls=calls)]
            return output
        if not self._graph and any(one.is_inference() or one.is_quantized for one in maps):
            raise LayerError(_too_many(name, _shapes(maps)))
        begun = [self._begun(one, name) for one in maps]
        self._seen[name] = [
            replace(seen, part=part, returned=_shapes(maps), run=calls, calls=calls)
            for part, (seen, _) in enumerate(begun)
        ]
        return tree.replace_each(output, maps, [passed_on for _, passed_on in begun])

    def forget(self, name: str) -> None:
        """Forget the run that was kept last: a hook of somebody else's has changed what came of it."""
        self._calls[name] -= 1

    def _begun(self, maps: Tensor, name: str) -> tuple[Activation, Tensor]:
        """Begin the graph at a layer's maps."""
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
        # The model may run the layer under no_grad; its result is the place where our graph begins all the same.
        in_no_grad = not torch.is_grad_enabled()
        with torch.enable_grad():
            # A view of its own: the same tensor may also reach the score past the layer, over a skip connection.
            kept = maps.view_as(maps) if maps.requires_grad else maps.detach().requires_grad_()
            passed_on = kept.clone()
        return Activation(kept, kept._version, in_no_grad, goes_on=passed_on.grad_fn), passed_on

    def settle(self, answers: Iterable[Tensor]) -> None:
        """Of the several maps that a layer returned, keep the one on which these answers depend, where it is one alone."""
        unsettled = [name for name, several in self._seen.items() if len(several) > 1]
        if not unsettled:
            return
        nodes = _nodes_behind(answers)
        for name in unsettled:
            used = [seen for seen in self._seen[name] if seen.goes_on in nodes]
            if len(used) == 1:
                self._seen[name] = used

    def gradients(
        self, scores: Scores, *, keep_graph: bool = False, names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Differentiate each image's score by the recorded layers (or those of ``names``), in one pass back to the first of them.

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
                f"the second derivative at layer {name!r} raised {summarise(error)}; use a method that needs the first alone"
            ) from error

    def _why_cut(self) -> str:
        if any(self[name].in_no_grad for name in self.names):
            return f"the model runs it under torch.no_grad(); remove that, name a layer after it, or use {self.instead}"
        parts = () if self.within is None else self.within.named_modules()
        quantised = next((name for name, part in parts if _is_quantised(part)), None)
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
def record(layers: Mapping[str, nn.Module], *, graph: bool = True, instead: str = _NO_GRADIENTS) -> Iterator[Recording]:
    """Record the outputs of these layers in the forward pass inside this context; the recording stays valid after it.

    The autograd graph begins at the first recorded layer that runs, given a model that is lent by :func:`borrow`; with
    ``graph=False`` there is none. ``instead`` says in errors what works where there is no gradient.
    """
    recording = Recording(list(layers), graph=graph, instead=instead)
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
    """Find the tensors in a layer's output that can be maps: real numbers, with at least one axis after the channels.

    LayerError where there is none.
    """
    maps = [one for one in tree.leaves(output) if one.ndim >= 3 and (one.is_floating_point() or one.is_quantized)]
    if not maps:
        raise LayerError(
            f"the output of layer {name!r} ({', '.join(_shapes(tree.leaves(output))) or type(output).__name__}) has no spatial "
            "axes; name a layer before pooling and flattening"
        )
    return list({id(one): one for one in maps}.values())


def _copied(maps: Tensor) -> Activation:
    with torch.inference_mode(False):  # whose tensors do not tell when they are written to
        copied = maps.dequantize() if maps.is_quantized else maps.detach().clone()
    return Activation(copied, copied._version)


def _nodes_behind(answers: Iterable[Tensor]) -> set[Any]:
    """Walk the graph back from tensors."""
    waiting = [answer.grad_fn for answer in answers if answer.grad_fn is not None]
    nodes: set[Any] = set(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in nodes:
                nodes.add(node)
                waiting.append(node)
    return nodes


def _is_quantised(part: nn.Module) -> bool:
    return "quantized" in type(part).__module__.split(".")


def _shapes(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    return tuple(crossed(tensor.shape) for tensor in tensors)


def _too_many(name: str, shapes: Sequence[str]) -> str:
    return (
        f"layer {name!r} returns {len(shapes)} maps ({', '.join(shapes)}), of which not one alone is known to lead to the "
        "model's answer; name a module inside it that returns one"
    )


def _listed(names: list[str]) -> str:
    return f"layer{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"
