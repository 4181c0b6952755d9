"""Record what layers computed, with no autograd graph below the first of them, and ask for gradients at them.

The model is :func:`borrowed`: frozen and in eval mode for the time of a call, and afterwards, also after an exception, modes,
``requires_grad``, buffers and random states are as they were. Hooks stay only as long as a forward pass (:func:`record`).
"""

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from glowmap.errors import LayerError, ModelError, TargetError, told
from glowmap.shapes import Scores, crossed

# Hooks belong to a module, not to a thread: two threads that explain one model take turns.
_TURNS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()


@dataclass
class Seen:
    """What one layer left behind: its output, in the graph that leads on from there, and how often it ran."""

    output: Tensor
    calls: int
    version: int  # of the output when it was recorded; a later one means that it was overwritten in place
    in_no_grad: bool  # the model switched gradients off around the layer


class Recording:
    """The outputs of the recorded layers, by name, in the order in which they were asked for."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
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

    def keep(self, name: str, output: Any) -> Any:
        """Keep the maps in a layer's output and hand the model a clone of them, so that in-place operations spoil nothing."""
        maps = _maps_in(output, name)
        # The model may run the layer under no_grad; its result is the place where our graph begins all the same.
        in_no_grad = not torch.is_grad_enabled()
        with torch.enable_grad():
            # A view of its own: the same tensor may also reach the score past the layer, over a skip connection.
            kept = maps.view_as(maps) if maps.requires_grad else maps.detach().requires_grad_()
            passed_on = kept.clone()
        calls = self._seen[name].calls + 1 if name in self._seen else 1
        self._seen[name] = Seen(kept, calls, kept._version, in_no_grad)
        return _replaced(output, maps, passed_on)

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

    def _why_cut(self) -> str:
        if any(self[name].in_no_grad for name in self.names):
            return "the model runs it under torch.no_grad(); remove that, or name a layer after it"
        return (
            "either what the layer computes is not used for this score, or the model or the target detaches it on the way; "
            "name a layer on the way from the picture to the score"
        )


@contextmanager
def record(layers: Mapping[str, nn.Module]) -> Iterator[Recording]:
    """Record these layers in the forward pass that is run inside; the recording stays when the hooks are gone.

    The autograd graph begins at the first recorded layer that runs, given a model that is :func:`borrowed`.
    """
    recording = Recording(list(layers))
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


@contextmanager
def borrowed(model: nn.Module) -> Iterator[bool]:
    """Lend the model in eval mode, frozen, with gradients on, and give modes, flags, buffers and random states back.

    Yields whether any part of it was in training mode.
    """
    _refuse_unready(model)
    with _TURNS.setdefault(model, threading.RLock()):  # before a look at its flags, which another borrower may have set
        training = [(module, module.training) for module in model.modules()]
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        devices = {parameter.device.index for parameter, _ in trainable if parameter.is_cuda}
        with torch.random.fork_rng(devices=sorted(devices)):
            try:
                # Flag by flag: Module.eval() may be overridden (to merge adapters, even to start training).
                _set_flags(
                    [(module, False) for module, _ in training], [(parameter, False) for parameter, _ in trainable]
                )
                with _buffers_kept(model), torch.inference_mode(False), torch.enable_grad():
                    yield any(was for _, was in training)
            finally:
                _set_flags(training, trainable)


def _set_flags(training: list[tuple[nn.Module, bool]], trainable: list[tuple[nn.Parameter, bool]]) -> None:
    for module, flag in training:
        if module.training != flag:
            module.training = flag
    for parameter, flag in trainable:
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)


def _refuse_unready(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ModelError(
                f"parameter {name!r} of {type(model).__name__} has no shape yet; run the model once before"
            )
        if parameter.is_inference():
            raise ModelError(
                f"{type(model).__name__} was built under torch.inference_mode(), so its parameter {name!r} can be part of no "
                "gradient; build it outside"
            )


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass writes into buffers (statistics, counters, caches): in place, by assignment, or new ones."""
    # A scripted module's buffers can be read and not replaced.
    plain = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    owned = [(module, dict(module._buffers)) for module in plain]
    buffers = {id(buffer): buffer for _, own in owned for buffer in own.values() if buffer is not None}
    before = [
        (buffer, buffer.detach().clone(), buffer._version)
        for buffer in buffers.values()
        if not (buffer.is_inference() or is_lazy(buffer))
    ]
    try:
        yield
    finally:
        # Batch norm in training mode writes its statistics without a new version; values are compared only then, as that
        # costs a GPU one wait for each buffer.
        quiet = not any(module.training for module in model.modules())
        with torch.no_grad():
            for buffer, values, version in before:
                if buffer._version != version or not (quiet or torch.equal(buffer, values)):
                    buffer.copy_(values)
        for module, own in owned:
            now = module._buffers
            if now.keys() != own.keys() or any(now[name] is not buffer for name, buffer in own.items()):
                module._buffers.clear()
                module._buffers.update(own)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Walk through tensors in tuples, lists and mappings, however nested."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)


def _maps_in(output: Any, name: str) -> Tensor:
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


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """Copy a layer's output with one tensor exchanged."""
    if output is old:
        return new
    if isinstance(output, Mapping):
        copied: Any = copy.copy(output)
        for key, value in output.items():
            copied[key] = _replaced(value, old, new)
        return copied
    if isinstance(output, tuple) and hasattr(output, "_fields"):  # a named tuple takes its fields one by one
        return type(output)(*(_replaced(value, old, new) for value in output))
    if isinstance(output, list | tuple):
        return type(output)(_replaced(value, old, new) for value in output)
    return output


def _listed(names: list[str]) -> str:
    return f"layer{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"
