"""One forward pass of a model, and reruns after it: on changed images, or from a layer on with changed activations."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import (
    Activation,
    Prefix,
    Recording,
    call_model,
    patch_activation,
    repeat_image,
    replay_prefix,
    same_output,
)
from glowmap.cautions import Caution, caution_kind
from glowmap.errors import GlowmapError, ModelError, TargetError
from glowmap.inputs import Batch
from glowmap.layers import Layout, LayoutReader
from glowmap.outputs import ModelOutput
from glowmap.shapes import Maps

UNPROVEN_LAYOUT = caution_kind(
    "layout-unproven", "caution", "Name another layer, or compare the map with that of rise."
)
UNSTABLE_OUTPUT = caution_kind(
    "unstable-output", "caution", "Use a method that does not run the model again: grad_cam."
)
SLOW_RERUNS = caution_kind(
    "slow-reruns", "info", "Name another layer, or a method that does not rerun the head: grad_cam."
)


@dataclass
class ForwardPass:
    """One forward pass: the model and its input, the recorded layers with their layouts, and the output."""

    module: nn.Module
    batch: Batch
    layers: dict[str, nn.Module]
    recording: Recording
    reader: LayoutReader
    read: Callable[[Any, int], ModelOutput]  # reads a raw output for a number of images
    prefixes: dict[str, Prefix] = field(default_factory=dict)  # by layer, where the model may be rerun from it
    raw_output: Any = None
    output: ModelOutput = field(init=False)  # the raw output for the batch, as it can be read
    activations: dict[str, Activation] = field(default_factory=dict)  # by layer
    layouts: dict[str, Layout] = field(default_factory=dict)  # by layer
    input_leaf: Tensor | None = None  # where the autograd graph begins, if it begins at the input
    mode: Any = None  # in which the model ran
    overwrites_input: bool = False  # the model writes into its input
    autocast: tuple[bool, torch.dtype] = (False, torch.bfloat16)  # as the caller had it
    cautions: list[Caution] = field(default_factory=list)
    _can_replay: dict[tuple[str, int], bool] = field(default_factory=dict)  # by layer and image
    # by image: whether tensors that are as long as the batch have a row for each of its images
    _has_row_per_image: dict[int, bool] = field(default_factory=dict)
    _takes_full_batches: bool = False  # the model takes as many images as the batch has, and no other number
    _unlike_copies: set[int] = field(default_factory=set)  # images of which copies get another output

    def keep_layers(self, names: Iterable[str]) -> None:
        """Drop all recorded layers but these, and read the layouts of these.

        Raises LayerError for a layer that did not run, that was overwritten, or whose output has no grid.
        """
        self.layers = {name: self.layers[name] for name in names}
        self.recording.names = list(self.layers)
        self.activations = {name: self.recording[name] for name in self.layers}
        for name, activation in self.activations.items():
            layout = self.layouts[name] = self.reader.layout(name, activation.output.shape)
            if name in self.reader.unproven:
                sentence = f"the output of layer {name!r} was read as {layout}, which could not be proven by where its cells look"
                self.cautions.append(UNPROVEN_LAYOUT(sentence))
            self.cautions += activation.cautions(name)

    def caution(self, caution: Caution) -> None:
        """Add a caution, once."""
        if caution not in self.cautions:
            self.cautions.append(caution)

    @property
    def is_dense(self) -> bool | None:
        """Whether the class scores are per pixel; None where the output cannot be read."""
        try:
            return self.output.logits.ndim > 2
        except TargetError:
            return None

    def maps(self, layer: str, tensor: Tensor) -> Maps:
        """Return a layer's output, or a gradient with respect to it, as batch x channel x grid.

        The maps are on the images' device, in at least single precision.
        """
        return tree.full_precision(self.layouts[layer].maps(tensor).to(self.batch.images.device))

    def rerun(self, image: int, images: Tensor) -> Any:
        """Run the model on changed copies of an image; its other arguments are those of this image. Returns the raw output."""
        self._check_copies(image)
        # a copy: the model may write into its input
        return self._run_copies(image, images.to(self.batch.images.dtype, copy=True))

    def rerun_from_layer(self, layer: str, image: int, maps: Maps) -> Any:
        """Run the model on copies of an image from a layer on, whose output is replaced by maps. Returns the raw output."""
        original = self._layer_output(layer, image)
        changed = self.layouts[layer].output(maps.to(original.device), original)
        strategy, activation = self._resume_strategy(layer, image), self.recording[layer]
        with strategy(self.prefixes[layer], activation, image, len(self.batch.images), changed):
            return self._call(self._inputs(image, len(maps)))

    def _call(self, batch: Batch) -> Any:
        is_enabled, dtype = self.autocast
        with torch.autocast(batch.images.device.type, dtype=dtype, enabled=is_enabled):
            return call_model(self.module, batch, expected=len(self.batch.images))

    def _run_copies(self, image: int, images: Tensor) -> Any:
        """Run changed copies of an image; at once, or in full batches where the model takes no other number (an export)."""
        size, count = len(self.batch.images), len(images)
        if torch.is_grad_enabled() or not self._takes_full_batches:  # recorded layers must run once
            return self._call(self._inputs(image, count, images))
        filled = images[torch.arange(-(-count // size) * size) % count]
        outputs = [self._call(self._inputs(image, size, part)) for part in torch.split(filled, size)]
        return tree.concatenate(outputs, size, count)

    def _inputs(self, image: int, count: int, images: Tensor | None = None) -> Batch:
        """Repeat one image's input ``count`` times, or put changed images in its place."""
        size = len(self.batch.images)
        repeated = repeat_image(self.batch.images, image, size, count) if images is None else images

        def copies(tensor: Tensor) -> Tensor:
            if tensor is self.batch.images:
                repeats = repeated
            elif self._has_row_per_image.get(image, True):
                repeats = repeat_image(tensor, image, size, count)
            else:
                repeats = tensor
            return repeats.clone() if self.overwrites_input else repeats  # repeated memory cannot be written to

        arguments, keywords = tree.map([self.batch.arguments, self.batch.keywords], copies)
        return Batch(arguments, keywords, repeated, ())

    def _check_copies(self, image: int) -> None:
        """Check once per image that a batch of its copies gives the same output; warn if not."""
        if image not in self._has_row_per_image and not self._copies_are_alike(image):
            self._unlike_copies.add(image)
        if image in self._unlike_copies:
            self.caution(
                UNSTABLE_OUTPUT(
                    f"for copies of image {image} the model gives another output than for the image: it depends on the batch, on "
                    "chance or on how often it is called, and so does this map"
                )
            )

    def _copies_are_alike(self, image: int) -> bool:
        """Find out how copies of an image are run so that the model's output stays the same; False if it never does.

        A tensor that is as long as the batch may have a row for each image, or belong to the target (prompts). And a model may
        take any number of images, which is tried first, or only full batches.
        """
        # as it is first: texts may be as many as the images, and the output for one row would be that of another text
        ways = (False, True) if self._has_class_scores else (True, False)
        repeated = repeat_image(self.batch.images, image, len(self.batch.images), self._probe_count)
        takes_any_number = False
        for self._takes_full_batches in (False, True):
            for has_row in ways:
                self._has_row_per_image[image] = has_row
                with torch.no_grad(), suppress(ModelError):
                    raw = self._run_copies(image, repeated)
                    takes_any_number = takes_any_number or not self._takes_full_batches
                    if self._is_unchanged(image, raw):
                        return True
        self._has_row_per_image[image] = True  # the likelier
        self._takes_full_batches = not takes_any_number
        return False

    @cached_property
    def _has_class_scores(self) -> bool:
        """Whether the output has class scores with a row for each image, by which outputs can be compared."""
        with suppress(TargetError):
            return self.output.logits is not None
        return False

    @property
    def _probe_count(self) -> int:
        """How many copies of an image are compared: more than one, and not as many as there are images."""
        return 3 if len(self.batch.images) == 2 else 2

    def _is_unchanged(self, image: int, raw: Any) -> bool:
        """Return whether a raw output for copies of an image is that of the image."""
        count = self._probe_count
        if not self._has_class_scores:
            return same_output(raw, repeat_image(self.raw_output, image, len(self.batch.images), count))
        logits = self.output.logits[image : image + 1].detach()
        with suppress(TargetError):
            return same_output(self.read(raw, count).logits, logits.expand(count, *logits.shape[1:]))
        return False

    def _layer_output(self, layer: str, image: int) -> Tensor:
        """Return one image's part of a layer's output."""
        return self.recording[layer].output.detach().narrow(self.layouts[layer].batch_axis, image, 1)

    def _resume_strategy(self, layer: str, image: int) -> Callable[..., AbstractContextManager[None]]:
        """Return how to rerun from a layer: replay what ran before it where that is proven, else run the whole model."""
        if (layer, image) not in self._can_replay:
            if self._has_tensors_like_batch:
                self._check_copies(image)
            self._can_replay[layer, image] = self._prove_replay(layer, image)
        if self._can_replay[layer, image]:
            return replay_prefix
        self.caution(
            SLOW_RERUNS(
                f"running the model from layer {layer!r} on does not give its output again, so the whole model runs for each "
                "changed map, which is slow"
            )
        )
        self._check_copies(image)
        return patch_activation

    @property
    def _has_tensors_like_batch(self) -> bool:
        """Whether the input has tensors beside the images that are as long as the batch."""
        tensors, count = tree.leaves([self.batch.arguments, self.batch.keywords]), len(self.batch.images)
        others = (tensor for tensor in tensors if tensor is not self.batch.images)
        return count > 1 and any(tensor.ndim and len(tensor) == count for tensor in others)

    def _prove_replay(self, layer: str, image: int) -> bool:
        """Return whether rerunning from the unchanged activations of copies of an image gives the model's output."""
        prefix, size = self.prefixes[layer], len(self.batch.images)
        if prefix.runs != 1:
            return False
        axis = self.layouts[layer].batch_axis
        repeated = torch.cat([self._layer_output(layer, image)] * self._probe_count, axis)
        try:
            with torch.no_grad(), replay_prefix(prefix, self.recording[layer], image, size, repeated):
                raw = self._call(self._inputs(image, self._probe_count))
        except GlowmapError:
            return False
        return self._is_unchanged(image, raw)
