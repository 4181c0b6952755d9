"""Borrow a model: frozen and in eval mode for the time of a call, and afterwards, also after an exception, as it was."""

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from glowmap import tree
from glowmap.errors import GlowmapError, ModelError, summarise
from glowmap.inputs import Batch
from glowmap.shapes import crossed

# Hooks belong to a module, not to a thread: two threads that explain one model take turns.
_TURNS: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()


@contextmanager
def borrow(model: nn.Module) -> Iterator[bool]:
    """Lend a model in eval mode, frozen, run eagerly and with gradients on; give back modes, flags, buffers, random states.

    Yields whether any part of it was in training mode. Raises ModelError for parameters without a shape, and for those made
    under torch.inference_mode().
    """
    _refuse_unready(model)
    with _TURNS.setdefault(model, threading.RLock()):  # before its flags are read, which another borrower may have set
        training = [(module, module.training) for module in model.modules()]
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        devices = {parameter.device.index for parameter, _ in trainable if parameter.is_cuda}
        with keep_random_states(sorted(devices)):
            try:
                # Flag by flag: Module.eval() may be overridden (to merge adapters, even to start training).
                _set_flags(
                    [(module, False) for module, _ in training], [(parameter, False) for parameter, _ in trainable]
                )
                with eager_mode(model), _keep_buffers(model), torch.inference_mode(False), torch.enable_grad():
                    yield any(was_training for _, was_training in training)
            finally:
                _set_flags(training, trainable)


def call_model(module: nn.Module, batch: Batch, *, expected: int | None = None) -> Any:
    """Run a model and return its raw output, on the device of its images.

    What it raises becomes a ModelError that describes the input. ``expected`` is the number of images that it took before.
    """
    try:
        output = module(*batch.arguments, **batch.keywords)
    except GlowmapError:
        raise
    except Exception as error:
        images = batch.images
        single = "give one picture a batch axis, images[None], or " if images.ndim == 3 else ""
        number = "" if expected in (None, len(images)) else f", and any number of images, not {expected} alone"
        raise ModelError(
            f"{type(module).__name__} raised {summarise(error)}; {single}check that it takes an input of {crossed(images.shape)} "
            f"({str(images.dtype).removeprefix('torch.')} on {images.device}){number}"
        ) from error
    # writes to inference tensors are not counted, and a model on several devices returns its output on the last
    device = batch.images.device
    if any(tensor.is_inference() or tensor.device != device for tensor in tree.leaves(output)):
        return tree.map(output, lambda tensor: (tensor.clone() if tensor.is_inference() else tensor).to(device))
    return output


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
def _keep_buffers(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass writes into buffers (statistics, counters, caches): in place, by assignment, or new ones."""
    # A scripted module's buffers can be read and not replaced.
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    owned = [(module, dict(module._buffers)) for module in modules]
    buffers = {id(buffer): buffer for _, named in owned for buffer in named.values() if buffer is not None}
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
        is_eval = not any(module.training for module in model.modules())
        with torch.no_grad():
            for buffer, values, version in before:
                if buffer._version != version or not (is_eval or torch.equal(buffer, values)):
                    buffer.copy_(values)
        for module, named in owned:
            now = module._buffers
            if now.keys() != named.keys() or any(now[name] is not buffer for name, buffer in named.items()):
                module._buffers.clear()
                module._buffers.update(named)


class _Nesting(threading.local):
    """How deep this thread is in calls that keep the random states."""

    depth = 0


_NESTING = _Nesting()
_RANDOM_LOCK = threading.Lock()
_RANDOM_THREADS: set[int] = set()  # that keep the states at this moment
_RANDOM_STATES: dict[
    int | None, Tensor
] = {}  # by CUDA device, None for the CPU; as the first of the threads found them


@contextmanager
def keep_random_states(devices: Sequence[int]) -> Iterator[None]:
    """Give the random states of the CPU and of these CUDA devices back as they were.

    All threads of a process share them. Where several threads overlap, the last to end gives back what the first found, as none
    of them can tell its own draws.
    """
    is_nested = _NESTING.depth > 0  # a call within a call gives its own states back
    with torch.random.fork_rng(devices=devices, enabled=is_nested):
        _NESTING.depth += 1
        with _RANDOM_LOCK:
            _RANDOM_THREADS.add(threading.get_ident())
            _RANDOM_STATES.setdefault(None, torch.get_rng_state())
            for device in devices:
                _RANDOM_STATES.setdefault(device, torch.cuda.get_rng_state(device))
        try:
            yield
        finally:
            _NESTING.depth -= 1
            with _RANDOM_LOCK:
                if _NESTING.depth == 0:
                    _RANDOM_THREADS.discard(threading.get_ident())
                while _RANDOM_STATES and not _RANDOM_THREADS:
                    number, state = _RANDOM_STATES.popitem()
                    if number is None:
                        torch.set_rng_state(state)
                    else:
                        torch.cuda.set_rng_state(state, number)


# Compiled code has no hooks, or keeps those that it was compiled with. Gradient checkpointing runs modules a second time in the
# backward pass, or hides them from it. DataParallel runs copies of the modules in threads of their own.
_EAGER_LOCK = threading.Lock()
_EAGER_THREADS: Counter[int] = Counter()  # that run a model eagerly now; in others, checkpointing goes on
_EAGER_UNDO: list[Callable[[], None]] = []  # undoes what the first of these threads changed; the last one calls it
_GENERATORS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")


@contextmanager
def eager_mode(model: nn.Module) -> Iterator[None]:
    """Run models eagerly in this thread, and this one on one device where DataParallel would take several."""
    thread = threading.get_ident()
    replicated = [(module, module.device_ids) for module in model.modules() if isinstance(module, nn.DataParallel)]
    with _EAGER_LOCK:
        if not _EAGER_THREADS:
            _patch_torch()
        _EAGER_THREADS[thread] += 1
    try:
        for module, devices in replicated:
            module.device_ids = devices[:1]
        yield
    finally:
        for module, devices in replicated:
            module.device_ids = devices
        with _EAGER_LOCK:
            _EAGER_THREADS[thread] -= 1
            if not _EAGER_THREADS[thread]:
                del _EAGER_THREADS[thread]
            while _EAGER_UNDO and not _EAGER_THREADS:
                _EAGER_UNDO.pop()()


def unwrapped_name(name: str) -> str:
    """Return a module's name without the prefixes that torch.compile and DataParallel put before it."""
    return name.removeprefix("_orig_mod.").removeprefix("module.")


def _patch_torch() -> None:
    """Switch compiled code off, and checkpointing in the threads that run models eagerly."""
    if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
        stance = torch.compiler.set_stance("force_eager")
        stance.__enter__()
        _EAGER_UNDO.append(lambda: stance.__exit__(None, None, None))
    checkpoint: Any = torch.utils.checkpoint
    reentrant = checkpoint.CheckpointFunction

    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        """Stand for the function that runs a part without a graph, and again in the backward pass."""
        is_eager = threading.get_ident() in _EAGER_THREADS
        return function(*arguments) if is_eager else reentrant.apply(function, preserve, *arguments)

    patches: dict[str, Any] = {"CheckpointFunction": SimpleNamespace(apply=apply)}
    for name in _GENERATORS:  # which of them is called depends on the version
        if hasattr(checkpoint, name):
            generator = getattr(checkpoint, name)
            patches[name] = lambda *arguments, original=generator, **keywords: (
                (None for _ in range(1))  # nothing before and after the part is run
                if threading.get_ident() in _EAGER_THREADS
                else original(*arguments, **keywords)
            )
    for name, patch in patches.items():
        _EAGER_UNDO.append(partial(setattr, checkpoint, name, getattr(checkpoint, name)))
        setattr(checkpoint, name, patch)
