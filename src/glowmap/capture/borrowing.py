"""Borrow a model: frozen and in eval mode for the time of a call, and afterwards, also after an exception, as it was."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from glowmap.capture.eager import eager_mode
from glowmap.capture.rng import keep_random_states
from glowmap.errors import ModelError

# Hooks belong to a module, not to a thread: two threads that explain one model take turns.
_TURNS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()


@contextmanager
def borrow(model: nn.Module) -> Iterator[bool]:
    """Lend the model in eval mode, frozen, run plainly, with gradients on, and give back modes, flags, buffers, random states.

    Yields whether any part of it was in training mode.
    """
    _refuse_unready(model)
    with _TURNS.setdefault(model, threading.RLock()):  # before a look at its flags, which another borrower may have set
        training = [(module, module.training) for module in model.modules()]
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        devices = {parameter.device.index for parameter, _ in trainable if parameter.is_cuda}
        with keep_random_states(sorted(devices)):
            try:
                # Flag by flag: Module.eval() may be overridden (to merge adapters, even to start training).
                _set_flags(
                    [(module, False) for module, _ in training], [(parameter, False) for parameter, _ in trainable]
                )
                with eager_mode(model), _buffers_kept(model), torch.inference_mode(False), torch.enable_grad():
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
