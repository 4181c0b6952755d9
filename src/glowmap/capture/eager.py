"""Run a model as it is written: nothing compiled, recomputed or replicated, so that hooks see each module run once.

Compiled code has no hooks, or keeps those that it was compiled with. Gradient checkpointing runs modules a second time in the
backward pass, or hides them from it. DataParallel runs copies of the modules in threads of their own.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

_LOCK = threading.Lock()
_THREADS: Counter[int] = Counter()  # those that run a model plainly now; in others, checkpointing goes on
_PATCHED = ExitStack()  # what the first of them changed and the last one puts back
_GENERATORS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")


@contextmanager
def eager_mode(model: nn.Module) -> Iterator[None]:
    """Run models plainly in this thread, and this one on one device where DataParallel would take several."""
    owner = threading.get_ident()
    with _LOCK:
        if not _THREADS:
            _patch()
        _THREADS[owner] += 1
    try:
        with _one_device(model):
            yield
    finally:
        with _LOCK:
            _THREADS[owner] -= 1
            if not _THREADS[owner]:
                del _THREADS[owner]
            if not _THREADS:
                _PATCHED.close()


def unwrapped_name(name: str) -> str:
    """Return a module's name without the prefixes that torch.compile and DataParallel put before it."""
    return name.removeprefix("_orig_mod.").removeprefix("module.")


def _patch() -> None:
    if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
        _PATCHED.enter_context(torch.compiler.set_stance("force_eager"))
    checkpoint = torch.utils.checkpoint
    _exchange(checkpoint, "CheckpointFunction", _Reentrant(checkpoint.CheckpointFunction))
    for name in _GENERATORS:  # which of them is called depends on the version
        if hasattr(checkpoint, name):
            _exchange(checkpoint, name, _unless_plainly(getattr(checkpoint, name)))


def _exchange(place: Any, name: str, new: Any) -> None:
    _PATCHED.callback(setattr, place, name, getattr(place, name))
    setattr(place, name, new)


class _Reentrant:
    """Stands for torch's function that runs a part without a graph and again in the backward pass."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def apply(self, function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        if threading.get_ident() in _THREADS:
            return function(*arguments)
        return self._own.apply(function, preserve, *arguments)


def _unless_plainly(own: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
    """Give a generator that does nothing before and after a part is run, in threads that run models plainly."""

    def around(*arguments: Any, **keywords: Any) -> Iterator[None]:
        return (None for _ in range(1)) if threading.get_ident() in _THREADS else own(*arguments, **keywords)

    return around


@contextmanager
def _one_device(model: nn.Module) -> Iterator[None]:
    spread = [module for module in model.modules() if isinstance(module, nn.DataParallel)]
    own = [module.device_ids for module in spread]
    try:
        for module in spread:
            module.device_ids = module.device_ids[:1]
        yield
    finally:
        for module, devices in zip(spread, own, strict=True):
            module.device_ids = devices
