"""Run a model on from a layer: what was computed before it is handed back, and only what comes after it computes.

Methods that ask the model again about changed maps would else pay for the trunk each time.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture.activations import Activation, hook_output, maps_in
from glowmap.capture.intermediates import WithIntermediates
from glowmap.errors import LayerError

# An output of a batch may differ by rounding from that of its images; more than this share of its range is another output.
_SAME = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass
class Prefix:
    """The outputs of the modules that finished before the layer did, outermost modules alone, in the order of their calls."""

    layer: nn.Module | None
    finished: list[tuple[nn.Module, Any]] = field(default_factory=list)
    output: Any = None  # of the layer's last run
    runs: int = 0
    widest: int = 0  # bytes of the largest output of any module
    widest_after: int = 0  # the same from the layer on


@contextmanager
def record_prefix(model: nn.Module, layer: nn.Module | None, *, outputs: bool = True) -> Iterator[Prefix]:
    """Remember, in the forward pass that is run inside, what is computed before the layer, and how large it gets.

    Without a layer, or with ``outputs`` off, only the sizes are remembered, which takes no memory.
    """
    trunk, owner = Prefix(layer), threading.get_ident()
    begun: list[int] = []  # how many outputs were known when each module that is still running began

    def begin(_module: nn.Module, _inputs: Any) -> None:
        if threading.get_ident() == owner:  # another thread that runs the same module is none of our business
            begun.append(len(trunk.finished))

    def finish(module: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() != owner:
            return
        before = begun.pop()
        size = sum(tensor.nbytes for tensor in tree.leaves(output))
        trunk.widest = max(trunk.widest, size)
        if trunk.runs or module is layer:
            trunk.widest_after = max(trunk.widest_after, size)
        if outputs and layer is not None and trunk.runs == 0:
            # what ran inside this module need not be known: the module itself will hand its output back
            trunk.finished[before:] = [] if module is layer else [(module, tree.map(output, Tensor.detach))]
        if module is layer:
            trunk.output, trunk.runs = tree.map(output, Tensor.detach), trunk.runs + 1

    with ExitStack() as hooked:
        for module in model.modules():
            if module is not model and not isinstance(module, torch.jit.ScriptModule):
                hooked.callback(module.register_forward_pre_hook(begin).remove)
                hooked.callback(module.register_forward_hook(finish).remove)
        yield trunk


@contextmanager
def resumed(trunk: Prefix, seen: Activation, image: int, batch: int, maps: Tensor) -> Iterator[None]:
    """Let the model, when it is run inside on ``len(maps)`` copies of one image's input, begin at the layer with these maps.

    ``seen`` says which of the layer's maps are meant, ``batch`` how many images the trunk was remembered for; ``maps`` are laid
    out as the layer's own output. Raises LayerError where the model went another way than before, past the layer (a fused path)
    or past what was handed back.
    """
    assert trunk.layer is not None
    count = len(maps)
    known = [(module, repeat_image(output, image, batch, count)) for module, output in trunk.finished]
    begun = _exchanged(repeat_image(trunk.output, image, batch, count), seen, maps)
    with replay_outputs([*known, (trunk.layer, begun)]) as waiting:
        yield
    if any(waiting):
        raise LayerError("the model did not run as before; name a module whose forward it calls")


@contextmanager
def replay_outputs(outputs: Sequence[tuple[nn.Module, Any]]) -> Iterator[Collection["deque[Any]"]]:
    """Let modules hand back these outputs, one a call and in this order, while the model is run inside.

    Yields what still waits to be handed back, module by module.
    """
    waiting: dict[nn.Module, deque[Any]] = defaultdict(deque)
    for module, output in outputs:
        waiting[module].append(output)
    with ExitStack() as patched:
        for module, own in waiting.items():
            patched.enter_context(forward_of(module, _handing_back(module, own)))
        yield waiting.values()


@contextmanager
def patch_activation(trunk: Prefix, seen: Activation, _image: int, _batch: int, maps: Tensor) -> Iterator[None]:
    """Let the whole model run inside, but for the layer's output, which becomes these maps at the run that was seen.

    Raises LayerError where the layer runs another number of times than before.
    """
    assert trunk.layer is not None
    runs = 0

    def exchange(output: Any) -> Any:
        nonlocal runs
        runs += 1
        return _exchanged(output, seen, maps) if runs == seen.run else output

    def forget() -> None:
        nonlocal runs
        runs -= 1

    with ExitStack() as hooked:
        for handle in hook_output(trunk.layer, exchange, forget):
            hooked.callback(handle.remove)
        yield
    if runs != trunk.runs:
        raise LayerError(
            f"the layer ran {trunk.runs} times for the images and {runs} times for copies of one; name a layer that always "
            "runs as often"
        )


def repeat_image(value: Any, image: int, batch: int, count: int) -> Any:
    """Repeat what belongs to one image of a batch, in any structure of tensors, without taking memory for it."""

    def repeat(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != batch:
            return tensor  # the same for all images: a table of positions, a mask
        return tensor[image : image + 1].expand(count, *tensor.shape[1:])

    if isinstance(value, WithIntermediates):
        return WithIntermediates(repeat_image(value.output, image, batch, count), tree.map(value.inside, repeat))
    if isinstance(value, list) and len(value) == batch and all(isinstance(one, Mapping) for one in value):
        return [value[image]] * count  # an entry an image, as detectors answer
    return tree.map(value, repeat)


def same_output(one: Any, other: Any) -> bool:
    """Tell whether two outputs are the same but for rounding."""
    pairs = list(zip(tree.leaves(one), tree.leaves(other), strict=False))
    return bool(pairs) and all(_same(*pair) for pair in pairs)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    span = float((one.max() - one.min()).abs())
    return bool((one - other).abs().max() <= _SAME.get(one.dtype, 1e-4) * max(span, float(one.abs().max()), 1e-30))


def _handing_back(module: nn.Module, waiting: "deque[Any]") -> Callable[..., Any]:
    own, owner = module.forward, threading.get_ident()

    def forward(*arguments: Any, **keywords: Any) -> Any:
        # a module that is called again after the layer (a shared activation), or by another thread, computes
        mine = waiting and threading.get_ident() == owner
        return waiting.popleft() if mine else own(*arguments, **keywords)

    return forward


@contextmanager
def forward_of(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Put another forward in a module's place; what hooks it has still run."""
    own = module.__dict__.get("forward")  # an instance's own, where somebody patched it before
    module.forward = function
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own


def _exchanged(output: Any, seen: Activation, maps: Tensor) -> Any:
    """Put other maps in the place of those that were seen, in the numbers that the layer puts out."""
    old = maps_in(output, "the layer")[seen.part]
    if old.is_quantized:
        maps = torch.quantize_per_tensor(maps.float(), old.q_scale(), old.q_zero_point(), old.dtype)
    return tree.replace(output, old, maps)
