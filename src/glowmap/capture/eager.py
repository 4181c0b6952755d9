"""Run a model as it is written: nothing compiled, recomputed or replicated, so that hooks see each module run once.

Compiled code has no hooks, or keeps those that it was compiled with. Gradient checkpointing runs modules a second time in the
backward pass, or hides them from it. DataParallel runs copies of the modules in threads of their own.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

_LOCK = threading.Lock()
_THREADS: Counter[int] = Counter()  # those that run a model eagerly now; in others, checkpointing goes on
_RESTORE: list[Callable[[], None]] = []  # undoes what the first of these threads changed; the last one calls it
_GENERATORS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")


@contextmanager
def eager_mode(model: nn.Module) -> Iterator[None]:
    """Run models eagerly in this thread, and this one on one device where DataParallel would take several."""
    thread = threading.get_ident()
    replicated = [(module, module.device_ids) for module in model.modules() if isinstance(module, nn.DataParallel)]
    with _LOCK:
        if not _THREADS:
            _patch_torch()
        _THREADS[thread] += 1
    try:
        for module, devices in replicated:
            module.device_ids = devices[:1]
        yield
    finally:
        for module, devices in replicated:
            module.device_ids = devices
        with _LOCK:
            _THREADS[thread] -= 1
            if not _THREADS[thread]:
                del _THREADS[thread]
            while _RESTORE and not _THREADS:
                _RESTORE.pop()()


def unwrapped_name(name: str) -> str:
    """Return a module's name without the prefixes that torch.compile and DataParallel put before it."""
    return name.removeprefix("_orig_mod.").removeprefix("module.")


def _patch_torch() -> None:
    """Switch compiled code off, and checkpointing in the threads that run models eagerly."""
    if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
        stance = torch.compiler.set_stance("force_eager")
        stance.__enter__()
        _RESTORE.append(lambda: stance.__exit__(None, None, None))
    checkpoint: Any = torch.utils.checkpoint
    reentrant = checkpoint.CheckpointFunction

    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        """Stand for the function that runs a part without a graph, and again in the backward pass."""
        is_eager = threading.get_ident() in _THREADS
        return function(*arguments) if is_eager else reentrant.apply(function, preserve, *arguments)

    patches: dict[str, Any] = {"CheckpointFunction": SimpleNamespace(apply=apply)}
    for name in _GENERATORS:  # which of them is called depends on the version
        if hasattr(checkpoint, name):
            generator = getattr(checkpoint, name)
            patches[name] = lambda *arguments, original=generator, **keywords: (
                (None for _ in range(1))  # nothing before and after the part is run
                if threading.get_ident() in _THREADS
                else original(*arguments, **keywords)
            )
    for name, patch in patches.items():
        _RESTORE.append(partial(setattr, checkpoint, name, getattr(checkpoint, name)))
        setattr(checkpoint, name, patch)
