"""How the outputs of a model's layers are laid out, for one input: read, proven and remembered."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import call_model, repeat_image
from glowmap.errors import GlowmapError, LayerError
from glowmap.inputs import Batch, PatchPositions
from glowmap.layers.align import LayoutProof, gradients
from glowmap.layers.choice import Choice
from glowmap.layers.layout import (
    Grid,
    Layout,
    interleaved_candidate,
    interleaved_layout,
    is_made,
    is_plain,
    known_grids,
    layout_witness,
    read_layout,
    token_layouts,
)
from glowmap.layers.trace import Trace, TracedOutput, traced
from glowmap.outputs import ModelOutput


@dataclass
class LayerMemory:
    """What is known of a model's layers, each by the key of an input, for as long as the model lives.

    Weak references to layers tell whether the model was rebuilt since.
    """

    choices: dict[Any, dict[Hashable, tuple[Choice, "ref[nn.Module]"]]] = field(default_factory=dict)  # also by target
    grids: dict[Any, tuple[Grid, ...]] = field(default_factory=dict)  # that convolutions made
    plain_layouts: dict[Any, tuple[Layout, "ref[nn.Module]"]] = field(default_factory=dict)  # that need no proof
    proven_layouts: dict[Any, tuple[Layout | None, bool]] = field(default_factory=dict)  # and whether they are proven


MEMORIES: "WeakKeyDictionary[nn.Module, LayerMemory]" = WeakKeyDictionary()


@dataclass
class LayoutReader:
    """Reads how the layers of a borrowed model lay out their outputs for one input.

    ``read`` reads the model's raw output for a number of images. ``token_grids`` and ``patch_positions`` are what the model's
    family knows: grids of tokens that no convolution makes, and where patches stand among words. ``expected`` holds the layouts
    of layers that a search found; ``unproven`` the layers whose layout could not be proven by where their cells look.
    """

    module: nn.Module
    batch: Batch
    read: Callable[[Any, int], ModelOutput]
    token_grids: Sequence[Grid] = ()
    patch_positions: PatchPositions | None = None
    expected: dict[str, Layout] = field(default_factory=dict)
    unproven: set[str] = field(default_factory=set)

    memory: LayerMemory = field(init=False)  # what earlier inputs of the model have shown
    # what inputs share for which a model runs alike: shapes but for the batch, device, and plain arguments
    input_key: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.memory = MEMORIES.setdefault(self.module, LayerMemory())
        batch = self.batch
        arguments = [*enumerate(batch.arguments), *batch.keywords.items()]
        plain = tuple((name, value) for name, value in arguments if isinstance(value, str | int | float | bool | None))
        tensors = tree.leaves([batch.arguments, batch.keywords])
        shapes = (tuple(tensor.shape[1:]) for tensor in tensors)
        self.input_key = (tuple(batch.images.shape[1:]), batch.images.device, plain, *shapes)

    @cached_property
    def text_key(self) -> tuple[bytes, ...]:
        """What inputs with the same texts share, whose tokens are whole numbers; empty without texts."""
        tensors = tree.leaves([self.batch.arguments, self.batch.keywords])
        tokens = [tensor for tensor in tensors if not tensor.is_floating_point()]
        return tuple(sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).digest() for tensor in tokens)

    @contextmanager
    def gathering_grids(self) -> Iterator[None]:
        """Record which grids the model's convolutions make in the forward pass inside this context, unless known."""
        if self.input_key in self.memory.grids:
            yield
            return
        with known_grids(self.module) as grids:
            yield
        self.memory.grids[self.input_key] = tuple(dict.fromkeys(grids))

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids that tokens may have: those that the family knows, and those that convolutions made."""
        return (*self.token_grids, *self.memory.grids.get(self.input_key, ()))

    def layout(self, name: str, shape: torch.Size) -> Layout:
        """Return the layout of a layer's output of this shape. Raises LayerError where it has none."""
        expected = self.expected.get(name)
        if expected is not None and expected.fits(shape, len(self.batch.images)):
            return expected
        key, layer = (self.input_key, name, shape), self.module.get_submodule(name.partition("#")[0])
        layout, known_layer = self.memory.plain_layouts.get(key, (None, None))
        if layout is None or known_layer is None or known_layer() is not layer:
            layout, is_settled = self._read_layout(name, shape)
            if is_settled:
                self.memory.plain_layouts[key] = layout, ref(layer)
        return layout

    def refuse_moving_patches(self, name: str, layout: Layout) -> None:
        """Raise LayerError where the patches of a batch's images stand at different places among words."""
        if not (self.text_key and layout.depends_on_text):
            return
        for image in range(1, len(self.batch.images)):
            other, is_proven = self._check(single_image(self.batch, image), name, layout)
            if other is None or not is_proven or replace(other, interleaved=layout.interleaved) != layout:
                raise LayerError(
                    f"the patches of image {image} stand elsewhere among the tokens of layer {name!r} than those of image 0 "
                    "(padding on the left?); explain the images one by one"
                )

    def _read_layout(self, name: str, shape: Sequence[int]) -> tuple[Layout, bool]:
        """Read a layout, and prove it or find another that holds, unless strides and convolutions settle it (True)."""
        layout: Layout | None
        try:
            layout = read_layout(shape, name, layout_witness(self.module, name), self.batch.images.shape, self.grids)
            if not layout.is_of_tokens and is_made(layout.grid, self.grids):
                # kept only where the strides alone settle it: modules may be replaced before the next pass
                return layout, is_plain(layout, shape, self.batch.images.shape[2:])
            layout, is_proven = self._proven(name, layout)
        except LayerError:  # patches may stand among other tokens
            layout, is_proven = self._proven(name, None) if len(shape) == 3 else (None, False)
            if layout is None:
                raise
        assert layout is not None
        if not is_proven:
            self.unproven.add(name)
        return layout, False

    def _proven(self, name: str, layout: Layout | None) -> tuple[Layout | None, bool]:
        """Return the layout if it is proven, else another that is; the layout and False where none is. Remembered."""
        key = (self.input_key, self.text_key, name, layout)
        if key not in self.memory.proven_layouts:
            try:
                proven, is_proven = self._check(single_image(self.batch), name, layout)
            except GlowmapError:  # the model does not run on one image alone
                proven, is_proven = layout, False
            if is_proven and proven is not None:
                self.refuse_moving_patches(name, proven)
            self.memory.proven_layouts[key] = proven, is_proven
        return self.memory.proven_layouts[key]

    def _check(self, batch: Batch, name: str, layout: Layout | None) -> tuple[Layout | None, bool]:
        """Prove a layout, or find another that holds, with one traced pass and a few backward passes to the images."""
        leaf = batch.images.detach().clone().requires_grad_()
        with traced(self.module) as trace:
            raw = call_model(self.module, batch.changed(lambda _: leaf.clone()))  # the model may write into its input
        trace.grids += self.token_grids
        output = _output_of(trace, name)
        if output is None or gradients(output.tensor.sum(), [leaf])[0] is None:
            return layout, False
        tensor, proof = output.tensor, LayoutProof(leaf, self.read(raw, len(leaf)).canvas)
        if self.patch_positions is not None:
            known = [grid for grid in (*self.token_grids, *trace.grids) if len(grid) == leaf.ndim - 2]
            interleaved = interleaved_layout(self.patch_positions, name, tensor.shape, known)
            if interleaved is not None:
                return interleaved, True
        among_others = interleaved_candidate(tensor.shape, proof.shape, trace.grids)
        shifted = None if among_others is None else proof.token_offset(tensor, among_others)
        others = token_layouts(tensor.shape, len(leaf), proof.pixels, trace.grids)
        for candidate in (layout, shifted, *others):
            if candidate is not None and proof.is_proven(tensor, candidate):
                return candidate, True
        return layout, False


def single_image(batch: Batch, image: int = 0) -> Batch:
    """Cut a model's input down to one image."""
    count = len(batch.images)
    if count == 1:
        return batch
    images = batch.images[image : image + 1]

    def cut(tensor: Tensor) -> Tensor:
        return images if tensor is batch.images else repeat_image(tensor, image, count, 1)

    arguments, keywords = tree.map([batch.arguments, batch.keywords], cut)
    return Batch(arguments, keywords, images, batch.pictures)


def _output_of(trace: Trace, name: str) -> TracedOutput | None:
    """Return the last output of the layer, or that of the run which the name says."""
    plain, marked, _ = name.partition("#")
    outputs = [
        output
        for output in trace.outputs
        for run_name in (*output.names, *output.passed_by)
        if run_name == name or (not marked and run_name.partition("#")[0] == plain)
    ]
    return outputs[-1] if outputs else None
