"""Run a model from one of its layers on: modules before the layer return remembered outputs, and only the rest computes.

Methods that score changed activations would otherwise pay for the whole model each time.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture.activations import Activation, maps_in
from glowmap.capture.hooks import hookable, hooked, method_patched, output_changed
from glowmap.capture.intermediates import WithIntermediates
from glowmap.errors import LayerError

# The output for a batch may differ by rounding from that for its images; a larger share of its range is another output.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass
class Prefix:
    """What a forward pass computed before a layer: the outputs of the outermost modules that finished, in call order."""

    layer: nn.Module | None
    finished: list[tuple[nn.Module, Any]] = field(default_factory=list)
    output: Any = None  # of the layer's last run
    runs: int = 0  # of the layer
    widest: int = 0  # bytes of the largest output of any module
    widest_after: int = 0  # the same from the layer on


@contextmanager
def record_prefix(model: nn.Module, layer: nn.Module | None, *, outputs: bool = True) -> Iterator[Prefix]:
    """Record what the forward pass inside this context computes before the layer, and the largest output in bytes.

    Without a layer, or with ``outputs=False``, only the sizes are recorded, which takes no memory.
    """
    prefix = Prefix(layer)
    finished_before: list[int] = []  # for each running module, how many modules had finished when it began

    def begin(_module: nn.Module, _arguments: Any, _keywords: Any) -> None:
        finished_before.append(len(prefix.finished))

    def end(module: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> None:
        first_inside = finished_before.pop()
        size = sum(tensor.nbytes for tensor in tree.leaves(output))
        prefix.widest = max(prefix.widest, size)
        if prefix.runs or module is layer:
            prefix.widest_after = max(prefix.widest_after, size)
        if outputs and layer is not None and prefix.runs == 0:
            # the outputs inside this module are not needed: the module itself will return its output
            finished = [] if module is layer else [(module, tree.map(output, Tensor.detach))]
            prefix.finished[first_inside:] = finished
        if module is layer:
            prefix.output, prefix.runs = tree.map(output, Tensor.detach), prefix.runs + 1

    with hooked(hookable(model).values(), before=begin, after=end):
        yield prefix


@contextmanager
def replay_prefix(prefix: Prefix, activation: Activation, image: int, batch: int, maps: Tensor) -> Iterator[None]:
    """Let a model that is run on ``len(maps)`` copies of one image begin at the layer, whose output becomes ``maps``.

    ``activation`` says which of the layer's maps are replaced; ``batch`` is how many images the prefix was recorded for;
    ``maps`` are laid out as the layer's own output. Raises LayerError where the model takes another way than it did when the
    prefix was recorded: past the layer (a fused path), or past a module of the prefix.
    """
    assert prefix.layer is not None
    count = len(maps)
    outputs = [(module, repeat_image(output, image, batch, count)) for module, output in prefix.finished]
    layer_output = _exchanged(repeat_image(prefix.output, image, batch, count), activation, maps)
    with replay_outputs([*outputs, (prefix.layer, layer_output)]) as waiting:
        yield
    if any(waiting):
        raise LayerError("the model did not run as before; name a module whose forward it calls")


@contextmanager
def replay_outputs(outputs: Sequence[tuple[nn.Module, Any]]) -> Iterator[Collection["deque[Any]"]]:
    """Let modules return these outputs, one for each call and in this order, instead of computing.

    A module that is called more often (a shared activation) computes. Yields the outputs that wait, module by module.
    """
    waiting: dict[nn.Module, deque[Any]] = defaultdict(deque)
    for module, output in outputs:
        waiting[module].append(output)
    with ExitStack() as patches:
        for module, queue in waiting.items():
            patches.enter_context(method_patched(module, "forward", _Replay(queue)))
        yield waiting.values()


@dataclass(frozen=True)
class _Replay:
    """A forward that returns remembered outputs while there are any, and then computes."""

    waiting: "deque[Any]"

    def __call__(self, forward: Any, *arguments: Any, **keywords: Any) -> Any:
        return self.waiting.popleft() if self.waiting else forward(*arguments, **keywords)


@contextmanager
def patch_activation(prefix: Prefix, activation: Activation, _image: int, _batch: int, maps: Tensor) -> Iterator[None]:
    """Let the whole model run, but replace the layer's output by ``maps`` at the run that was recorded.

    Raises LayerError where the layer runs another number of times than when the prefix was recorded.
    """
    assert prefix.layer is not None
    runs = 0

    def exchange(output: Any) -> Any:
        nonlocal runs
        runs += 1
        return _exchanged(output, activation, maps) if runs == activation.run else output

    def forget() -> None:
        nonlocal runs
        runs -= 1

    with output_changed(prefix.layer, exchange, forget):
        yield
    if runs != prefix.runs:
        raise LayerError(
            f"the layer ran {prefix.runs} times for the images and {runs} times for copies of one; name a layer that always "
            "runs as often"
        )


def repeat_image(value: Any, image: int, batch: int, count: int) -> Any:
    """Repeat one image's part of a batch ``count`` times, in any structure of tensors, without taking memory for it.

    Tensors with ``batch`` rows have one for each image, and so has a list of as many records (mappings or dataclasses).
    Everything else is the same for all images: a table of positions, a mask.
    """

    def repeat(tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or len(tensor) != batch:
            return tensor
        return tensor[image : image + 1].expand(count, *tensor.shape[1:])

    if isinstance(value, WithIntermediates):
        return WithIntermediates(repeat_image(value.output, image, batch, count), tree.map(value.inside, repeat))
    if isinstance(value, list) and len(value) == batch and all(map(_is_record, value)):
        return [value[image]] * count
    return tree.map(value, repeat)


def _is_record(value: Any) -> bool:
    return isinstance(value, Mapping) or (is_dataclass(value) and not isinstance(value, type))


def same_output(output: Any, other: Any) -> bool:
    """Return whether two outputs are the same but for rounding."""
    pairs = list(zip(tree.leaves(output), tree.leaves(other), strict=False))
    return bool(pairs) and all(_is_close(*pair) for pair in pairs)


def _is_close(tensor: Tensor, other: Tensor) -> bool:
    if tensor.shape != other.shape:
        return False
    if not tensor.is_floating_point() or not tensor.numel():
        return torch.equal(tensor, other)
    span = float((tensor.max() - tensor.min()).abs())
    limit = _TOLERANCE.get(tensor.dtype, 1e-4) * max(span, float(tensor.abs().max()), 1e-30)
    return bool((tensor - other).abs().max() <= limit)


def _exchanged(output: Any, activation: Activation, maps: Tensor) -> Any:
    """Put maps in the place of the recorded ones, quantised where the layer's output is."""
    old = maps_in(output, "the layer")[activation.part]
    if old.is_quantized:
        maps = torch.quantize_per_tensor(maps.float(), old.q_scale(), old.q_zero_point(), old.dtype)
    return tree.replace(output, old, maps)
