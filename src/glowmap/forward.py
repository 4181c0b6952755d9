"""One forward pass, and what the model is asked after it: about changed images, and about changed maps from a layer on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.capture import Recording, Trunk, copies, exchanged, resumed, same_output
from glowmap.errors import GlowmapError, ModelError, TargetError, told
from glowmap.images import Batch
from glowmap.layers import Grid, Layout, read_layout, witness
from glowmap.shapes import Maps, crossed
from glowmap.structure import mapped
from glowmap.targets import Answer


@dataclass
class Run:
    """One forward pass: the model and its input, what was recorded at which layers, and how to read what came out."""

    module: nn.Module
    batch: Batch
    layers: dict[str, nn.Module]
    recording: Recording
    read: Callable[[Any, int], Answer]  # (raw output, how many images) -> how to read it
    trunks: dict[str, Trunk] = field(default_factory=dict)
    output: Any = None
    overwrites: bool = False  # the model writes into its input
    autocast: tuple[bool, torch.dtype] = (False, torch.bfloat16)  # as the caller had it
    grids: Callable[[], Sequence[Grid]] = tuple  # that convolutions made of this input, which tell how tokens lie
    layouts: dict[str, Layout] = field(default_factory=dict)  # by layer, where they are known
    notes: list[str] = field(default_factory=list)
    _proven: dict[tuple[str, int], bool] = field(default_factory=dict)
    _cuts: dict[int, bool] = field(default_factory=dict)  # by image: tensors as long as the batch have a row for it
    _distrusted: set[int] = field(default_factory=set)  # images of which copies are answered otherwise

    @cached_property
    def answer(self) -> Answer:
        """How to read what the model said of the batch."""
        return self.read(self.output, len(self.batch.images))

    def note(self, text: str) -> None:
        """Note something once."""
        if text not in self.notes:
            self.notes.append(text)

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
            grids = self.grids() if len(shape) == 3 else ()
            known = read_layout(shape, layer, witness(self.module, layer), images, grids)
            self.layouts[layer] = known
        return known

    def maps(self, layer: str, tensor: Tensor) -> Maps:
        """Lay a layer's output (or its gradient) out as maps: of the batch, or of changed inputs."""
        return self.layout(layer).maps(tensor)

    def called(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call the model on other input than the batch."""
        enabled, dtype = self.autocast
        with torch.autocast(self.batch.images.device.type, dtype=dtype, enabled=enabled):
            return called(self.module, replace(self.batch, arguments=arguments, keywords=keywords))

    def on_images(self, image: int, changed: Tensor) -> Any:
        """Call the model on changed images, with whatever else it takes as it was for this image."""
        self._check(image)
        # a copy: the model may write into its input
        return self.called(*self._inputs(image, len(changed), changed.to(self.batch.images.dtype, copy=True)))

    def on_maps(self, layer: str, image: int, maps: Maps) -> Any:
        """Run the model on from a layer whose output became these maps."""
        one = self.recording[layer].output.detach()[image : image + 1]
        own = self.layout(layer).back(maps, one)
        with self._from(layer, image)(self.trunks[layer], image, len(self.batch.images), own):
            return self.called(*self._inputs(image, len(maps)))

    def _inputs(self, image: int, count: int, images: Tensor | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Repeat one image's input, or put others in its place; what else the model takes is cut to this image's part of it."""
        batch = len(self.batch.images)
        repeated = copies(self.batch.images, image, batch, count) if images is None else images

        def given(value: Any) -> Any:
            if value is self.batch.images:  # wherever it is given
                return repeated
            return copies(value, image, batch, count) if self._cuts.get(image, True) else value

        arguments: Any = [given(value) for value in self.batch.arguments]
        keywords: Any = {name: given(value) for name, value in self.batch.keywords.items()}
        if self.overwrites:  # what shares memory cannot be written to
            arguments, keywords = mapped(arguments, torch.clone), mapped(keywords, torch.clone)
        return tuple(arguments), keywords

    def _check(self, image: int) -> None:
        """See once an image whether the model answers copies of it as it answered the image, and note where it does not.

        A tensor that is as long as the batch may belong to its images, one row each, or to the model's question (prompts).
        """
        if image not in self._cuts and not self._answers_copies(image):
            self._distrusted.add(image)
        if image in self._distrusted:
            self.note(
                f"asked about copies of image {image}, the model gives another answer than before: it depends on the batch, on "
                "chance or on how often it is called, and so does this map"
            )

    def _answers_copies(self, image: int) -> bool:
        for self._cuts[image] in (True, False):
            with torch.no_grad(), suppress(ModelError):
                if self._as_before(image, self.called(*self._inputs(image, self._several))):
                    return True
        self._cuts[image] = True  # the likelier, where neither answers as before
        return False

    @property
    def _several(self) -> int:
        """How many copies of an image prove something: more than one, and not as many as there are images."""
        return 3 if len(self.batch.images) == 2 else 2

    def _as_before(self, image: int, answer: Any) -> bool:
        return same_output(answer, copies(self.output, image, len(self.batch.images), self._several))

    def _from(self, layer: str, image: int) -> Callable[..., AbstractContextManager[None]]:
        """Choose how to run on from a layer: with the trunk's work handed back where that is proven, else the whole model."""
        if (layer, image) not in self._proven:
            self._proven[layer, image] = self._proof(layer, image)
        if self._proven[layer, image]:
            return resumed
        self.note(
            f"running on from layer {layer!r} alone does not give the model's output again, so the whole model is run for each "
            "question about changed maps, which is slow"
        )
        self._check(image)
        return exchanged

    def _proof(self, layer: str, image: int) -> bool:
        """Run on from the unchanged maps, twice over, and compare with what the model said."""
        trunk, batch = self.trunks[layer], len(self.batch.images)
        if trunk.runs != 1:
            return False
        maps = self.recording[layer].output.detach()[image : image + 1]
        repeated = maps.expand(self._several, *maps.shape[1:]).clone()
        try:
            with torch.no_grad(), resumed(trunk, image, batch, repeated):
                again = self.called(*self._inputs(image, self._several))
        except GlowmapError:
            return False
        return self._as_before(image, again)


def called(module: nn.Module, batch: Batch) -> Any:
    """Call a model; what it raises becomes a ModelError that says on what input."""
    try:
        return module(*batch.arguments, **batch.keywords)
    except GlowmapError:
        raise
    except Exception as error:
        alone = "give one picture a batch axis, images[None], or " if batch.images.ndim == 3 else ""
        raise ModelError(
            f"{type(module).__name__} raised {told(error)}; {alone}check that it takes an input of {crossed(batch.images.shape)} "
            f"({str(batch.images.dtype).removeprefix('torch.')} on {batch.images.device})"
        ) from error
