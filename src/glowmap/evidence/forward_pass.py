"""One forward pass, and what the model is asked after it: about changed images, and about changed maps from a layer on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import Activation, Prefix, Recording, patch_activation, repeat_image, replay_prefix, same_output
from glowmap.capture.call import called
from glowmap.errors import GlowmapError, LayerError, ModelError, TargetError
from glowmap.inputs import Batch
from glowmap.layers import Grid, Layout, is_made, read_layout, witness
from glowmap.outputs import ModelOutput
from glowmap.shapes import Maps


@dataclass
class ForwardPass:
    """One forward pass: the model and its input, what was recorded at which layers, and how to read what came out."""

    module: nn.Module
    batch: Batch
    layers: dict[str, nn.Module]
    recording: Recording
    read: Callable[[Any, int], ModelOutput]  # (raw output, how many images) -> how to read it
    trunks: dict[str, Prefix] = field(default_factory=dict)
    output: Any = None
    overwrites: bool = False  # the model writes into its input
    autocast: tuple[bool, torch.dtype] = (False, torch.bfloat16)  # as the caller had it
    grids: Callable[[], Sequence[Grid]] = tuple  # that convolutions made of this input, which tell how tokens lie
    check: Callable[[str, Layout | None], tuple[Layout | None, bool]] = lambda _name, layout: (layout, False)
    layouts: dict[str, Layout] = field(default_factory=dict)  # by layer, where they are known
    unproven: set[str] = field(default_factory=set)  # layers whose tokens may lie otherwise
    cautions: list[str] = field(default_factory=list)
    _proven: dict[tuple[str, int], bool] = field(default_factory=dict)
    _cuts: dict[int, bool] = field(default_factory=dict)  # by image: tensors as long as the batch have a row for it
    _takes_so_many: bool = False  # as the batch has images, and no other number
    _distrusted: set[int] = field(default_factory=set)  # images of which copies are answered otherwise

    def __post_init__(self) -> None:
        self.recording.within = self.module

    @cached_property
    def answer(self) -> ModelOutput:
        """How to read what the model said of the batch."""
        self.recorded()
        return self.read(self.output, len(self.batch.images))

    def recorded(self) -> dict[str, Activation]:
        """List what was recorded; which of several maps of a layer is meant, the model's output tells."""
        self.recording.settle(tree.leaves(self.output))
        return {name: self.recording[name] for name in self.recording.names}

    def caution(self, text: str) -> None:
        """Note something once."""
        if text not in self.cautions:
            self.cautions.append(text)

    @property
    def dense(self) -> bool | None:
        """Whether the model answers for places; None where its output cannot be read."""
        try:
            return self.answer.logits.ndim > 2
        except TargetError:
            return None

    def layout(self, layer: str) -> Layout:
        """Tell how a layer's output is laid out."""
        images, shape = self.batch.images, self.recording[layer].output.shape
        known = self.layouts.get(layer)
        if known is None or not known.reads(shape, len(images)):
            known = self.layouts[layer] = self._read_layout(layer)
        return known

    def _read_layout(self, layer: str) -> Layout:
        """Read a layout, and for tokens see it proven, or find how they lie."""
        shape = self.recording[layer].output.shape
        try:
            read = read_layout(shape, layer, witness(self.module, layer), self.batch.images, self.grids())
            if not read.of_tokens and is_made(read.grid, self.grids()):
                return read
            checked, proven = self.check(layer, read)
        except LayerError:  # patches may stand among other tokens
            checked, proven = self.check(layer, None) if len(shape) == 3 else (None, False)
            if checked is None:
                raise
        if not proven:
            self.unproven.add(layer)
        return checked or read

    def maps(self, layer: str, tensor: Tensor) -> Maps:
        """Lay a layer's output (or its gradient) out as maps on the images' device: of the batch, or of changed inputs."""
        return self.layout(layer).maps(tensor).to(self.batch.images.device)

    def called(self, batch: Batch) -> Any:
        """Call the model on other input than the batch it was run on."""
        enabled, dtype = self.autocast
        with torch.autocast(batch.images.device.type, dtype=dtype, enabled=enabled):
            return called(self.module, batch, took=len(self.batch.images))

    def on_images(self, image: int, changed: Tensor) -> Any:
        """Call the model on changed images, with whatever else it takes as it was for this image."""
        self._check(image)
        # a copy: the model may write into its input
        return self._on_images(image, changed.to(self.batch.images.dtype, copy=True))

    def _any_number(self, image: int, images: Tensor) -> Any:
        return self.called(self._inputs(image, len(images), images))

    def _on_images(self, image: int, images: Tensor) -> Any:
        """Call a model that takes only as many images as it was exported or traced for on so many at a time."""
        took, count = len(self.batch.images), len(images)
        recorded = torch.is_grad_enabled()  # whose layers must run once
        if recorded or not self._takes_so_many:
            try:
                return self._any_number(image, images)
            except ModelError:
                if recorded or count == took:
                    raise
        filled = images[torch.arange(-(-count // took) * took) % count]
        answers = [self.called(self._inputs(image, took, some)) for some in torch.split(filled, took)]
        self._takes_so_many = True
        return tree.concatenate(answers, took, count)

    def on_maps(self, layer: str, image: int, maps: Maps) -> Any:
        """Run the model on from a layer whose output became these maps."""
        one = self._of_image(layer, image)
        own = self.layout(layer).back(maps.to(one.device), one)
        how, seen = self._from(layer, image), self.recording[layer]
        with how(self.trunks[layer], seen, image, len(self.batch.images), own):
            return self.called(self._inputs(image, len(maps)))

    def _of_image(self, layer: str, image: int) -> Tensor:
        """Cut one image's part out of what a layer put out."""
        return self.recording[layer].output.detach().narrow(self._rows(layer), image, 1)

    def _rows(self, layer: str) -> int:
        return 1 if self.layout(layer).kind == "tokens first" else 0

    def _inputs(self, image: int, count: int, images: Tensor | None = None) -> Batch:
        """Repeat one image's input, or put others in its place; what else the model takes is cut to this image's part of it."""
        batch = len(self.batch.images)
        repeated = repeat_image(self.batch.images, image, batch, count) if images is None else images

        def given(tensor: Tensor) -> Tensor:
            cut = self._cuts.get(image, True)
            own = (
                repeated
                if tensor is self.batch.images
                else repeat_image(tensor, image, batch, count)
                if cut
                else tensor
            )
            return own.clone() if self.overwrites else own  # what shares memory cannot be written to

        arguments, keywords = tree.map([self.batch.arguments, self.batch.keywords], given)
        return Batch(arguments, keywords, repeated, ())

    def _check(self, image: int) -> None:
        """See once an image whether the model answers copies of it as it answered the image, and note where it does not.

        A tensor that is as long as the batch may belong to its images, one row each, or to the model's question (prompts).
        """
        if image not in self._cuts and not self._answers_copies(image):
            self._distrusted.add(image)
        if image in self._distrusted:
            self.caution(
                f"asked about copies of image {image}, the model gives another answer than before: it depends on the batch, on "
                "chance or on how often it is called, and so does this map"
            )

    def _answers_copies(self, image: int) -> bool:
        # as it is first: texts may be as many as the images, and cut with them the answer would be of another text
        ways = (False, True) if self._readable else (True, False)
        repeated = repeat_image(self.batch.images, image, len(self.batch.images), self._several)
        # one that takes any number of images, before one that is called on as many as there are at a time
        for cut, take in [(cut, take) for take in (self._any_number, self._on_images) for cut in ways]:
            self._cuts[image] = cut
            with torch.no_grad(), suppress(ModelError):
                if self._as_before(image, take(image, repeated)):
                    return True
        self._cuts[image] = True  # the likelier, where neither answers as before
        return False

    @cached_property
    def _readable(self) -> bool:
        """Whether the answer has class scores, a row an image, in which copies can be told."""
        with suppress(TargetError):
            return self.answer.logits is not None
        return False

    @property
    def _several(self) -> int:
        """How many copies of an image prove something: more than one, and not as many as there are images."""
        return 3 if len(self.batch.images) == 2 else 2

    def _as_before(self, image: int, answer: Any) -> bool:
        if not self._readable:
            return same_output(answer, repeat_image(self.output, image, len(self.batch.images), self._several))
        one = self.answer.logits[image : image + 1].detach()
        with suppress(TargetError):
            return same_output(self.read(answer, self._several).logits, one.expand(self._several, *one.shape[1:]))
        return False

    def _from(self, layer: str, image: int) -> Callable[..., AbstractContextManager[None]]:
        """Choose how to run on from a layer: with the trunk's work handed back where that is proven, else the whole model."""
        if (layer, image) not in self._proven:
            if self._ambiguous:
                self._check(image)
            self._proven[layer, image] = self._proof(layer, image)
        if self._proven[layer, image]:
            return replay_prefix
        self.caution(
            f"running on from layer {layer!r} alone does not give the model's output again, so the whole model is run for each "
            "question about changed maps, which is slow"
        )
        self._check(image)
        return patch_activation

    @property
    def _ambiguous(self) -> bool:
        """Whether the model is given something beside the images that is as long as they are many."""
        given, count = tree.leaves([self.batch.arguments, self.batch.keywords]), len(self.batch.images)
        return count > 1 and any(one.ndim and len(one) == count for one in given if one is not self.batch.images)

    def _proof(self, layer: str, image: int) -> bool:
        """Run on from the unchanged maps, twice over, and compare with what the model said."""
        trunk, batch = self.trunks[layer], len(self.batch.images)
        if trunk.runs != 1:
            return False
        repeated = torch.cat([self._of_image(layer, image)] * self._several, self._rows(layer))
        try:
            with torch.no_grad(), replay_prefix(trunk, self.recording[layer], image, batch, repeated):
                again = self.called(self._inputs(image, self._several))
        except GlowmapError:
            return False
        return self._as_before(image, again)
