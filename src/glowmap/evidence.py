"""Evidence: what a method may ask for about one question, made when it is asked for and not before.

Each kind that a method's parameter can name (the table is in ``methods/_method.py``) is a method of :class:`Evidence` here.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowmap.capture import (
    Biases,
    Guiding,
    Recording,
    Trunk,
    copies,
    exchanged,
    record,
    resumed,
    same_output,
    shortfalls,
)
from glowmap.errors import GlowmapError, MethodError, ModelError, TargetError, told
from glowmap.images import Batch
from glowmap.layers import laid_back, lay_out, witness
from glowmap.memory import chunk_size
from glowmap.methods import ASKING, Make
from glowmap.progress import tracked
from glowmap.shapes import Maps, PixelSets, Scores, crossed
from glowmap.structure import mapped
from glowmap.targets import Answer, Custom, Target, checked, settled


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
    cuts: bool = True  # tensors as long as the batch have a row for each image
    autocast: tuple[bool, torch.dtype] = (False, torch.bfloat16)  # as the caller had it
    notes: list[str] = field(default_factory=list)
    _proven: dict[tuple[str, int], bool] = field(default_factory=dict)
    _checked: set[int] = field(default_factory=set)

    @cached_property
    def answer(self) -> Answer:
        """How to read what the model said of the batch."""
        return self.read(self.output, len(self.batch.images))

    @property
    def dense(self) -> bool | None:
        """Whether the model answers for places; None where its output cannot be read."""
        try:
            return self.answer.logits.ndim > 2
        except TargetError:
            return None

    def maps(self, layer: str, tensor: Tensor, rows: int | None = None) -> Maps:
        """Lay a layer's output (or its gradient) out as maps: of the batch, or of so many changed inputs."""
        own = self.batch.images
        like = own if rows is None else own[:1].expand(rows, *own.shape[1:])
        return lay_out(tensor, layer, witness(self.module, layer), like)

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
        own = laid_back(maps, one, witness(self.module, layer), self.batch.images)
        with self._from(layer, image)(self.trunks[layer], image, len(self.batch.images), own):
            return self.called(*self._inputs(image, len(maps)))

    def _inputs(self, image: int, count: int, images: Tensor | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Repeat one image's input, or put others in its place; what else the model takes is cut to this image's part of it."""
        batch = len(self.batch.images)
        repeated = copies(self.batch.images, image, batch, count) if images is None else images

        def given(value: Any) -> Any:
            if value is self.batch.images:  # wherever it is given
                return repeated
            return copies(value, image, batch, count) if self.cuts else value

        arguments: Any = [given(value) for value in self.batch.arguments]
        keywords: Any = {name: given(value) for name, value in self.batch.keywords.items()}
        if self.overwrites:  # what shares memory cannot be written to
            arguments, keywords = mapped(arguments, torch.clone), mapped(keywords, torch.clone)
        return tuple(arguments), keywords

    def _check(self, image: int) -> None:
        """See once an image whether the model answers copies of it as it answered the image, and note where it does not.

        A tensor that is as long as the batch may belong to its images, one row each, or to the model's question (prompts).
        """
        if image in self._checked:
            return
        batch = len(self.batch.images)
        count = 3 if batch == 2 else 2
        for self.cuts in (True, False):
            with torch.no_grad():
                try:
                    again = self.called(*self._inputs(image, count))
                except ModelError:
                    continue
            if same_output(again, copies(self.output, image, batch, count)):
                self._checked.add(image)
                return
        self.cuts = True
        self.notes.append(
            f"asked about copies of image {image}, the model gives another answer than before: it depends on the batch, on "
            "chance or on how often it is called, and so does this map"
        )

    def _from(self, layer: str, image: int) -> Callable[..., AbstractContextManager[None]]:
        """Choose how to run on from a layer: with the trunk's work handed back where that is proven, else the whole model."""
        if (layer, image) not in self._proven:
            self._proven[layer, image] = self._proof(layer, image)
        if self._proven[layer, image]:
            return resumed
        note = (
            f"running on from layer {layer!r} alone does not give the model's output again, so the whole model is run for each "
            "question about changed maps, which is slow"
        )
        if note not in self.notes:
            self.notes.append(note)
        self._check(image)
        return exchanged

    def _proof(self, layer: str, image: int) -> bool:
        """Run on from the unchanged maps, twice over, and compare with what the model said."""
        trunk, batch = self.trunks[layer], len(self.batch.images)
        if trunk.runs != 1:
            return False
        maps = self.recording[layer].output.detach()[image : image + 1]
        count = 3 if batch == 2 else 2
        try:
            with torch.no_grad(), resumed(trunk, image, batch, maps.expand(count, *maps.shape[1:]).clone()):
                again = self.called(*self._inputs(image, count))
        except GlowmapError:
            return False
        return same_output(again, copies(self.output, image, batch, count))


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


class Evidence:
    """What the methods ask for about one question, for each of the recorded layers."""

    def __init__(self, run: Run, question: Target, scores: Scores) -> None:
        self._run, self._question, self._scores = run, question, scores
        self._gradients: dict[str, Tensor] | None = None
        self._without: dict[str, PixelSets] = {}
        self._settled: dict[int, Target] = {}
        self._held: set[tuple[int, int]] = set()

    @property
    def device(self) -> torch.device:
        """Where the model's input lies."""
        return self._run.batch.images.device

    @property
    def notes(self) -> list[str]:
        """What came up while evidence was made."""
        return self._run.notes

    def of(self, needs: tuple[str, ...], layer: str) -> list[dict[str, Any]]:
        """Make what a method needs: once for the batch, or, for one that asks, image by image."""
        if not ASKING & set(needs):
            return [{kind: getattr(self, kind)(layer) for kind in needs}]
        kept = {kind: getattr(self, kind)(layer) for kind in needs if kind not in ASKING}
        return [
            {
                kind: _of_image(kept[kind], image) if kind in kept else partial(getattr(self, kind), layer, image)
                for kind in needs
            }
            for image in range(len(self._run.batch.images))
        ]

    def activations(self, layer: str) -> Maps:
        return self._laid(self._run.recording[layer].output.detach(), layer)

    def activations_of_layers(self, _layer: str) -> list[Maps]:
        return [self.activations(name) for name in reversed(self._run.recording.in_order())]

    def scores(self, _layer: str) -> Scores:
        return wide(self._scores.detach())

    def images(self, _layer: str) -> Tensor:
        return wide(self._run.batch.images)

    def gradients(self, layer: str) -> Maps:
        if self._gradients is None:  # of all layers at once, and kept: the graph may be asked again
            self._gradients = self._run.recording.gradients(self._scores, keep_graph=True)
        return self._laid(self._gradients[layer], layer)

    def without_gradient(self, layer: str) -> PixelSets:
        """Tell in which cells no channel has a gradient: batch x space."""
        if layer not in self._without:
            self._without[layer] = (self.gradients(layer) == 0).all(1)
        return self._without[layer]

    def curvature(self, layer: str) -> Maps:
        return self._laid(self._run.recording.curvature(self._scores, layer), layer)

    def class_weights(self, layer: str) -> Tensor:
        """Find the pooled linear head by what it computes, and weigh its rows as the score weighs the logits."""
        answer, pooled = self._run.answer, self.activations(layer).flatten(2).mean(2)
        for weight, bias in _linear_heads(self._run.module):
            if weight.shape != (answer.logits.shape[1], pooled.shape[1]) or answer.logits.ndim != 2:
                continue
            logits = F.linear(pooled, wide(weight), None if bias is None else wide(bias))
            if same_output(logits.to(answer.logits.dtype), answer.logits.detach()):
                (slope,) = torch.autograd.grad(self._scores.sum(), answer.logits, retain_graph=True, allow_unused=True)
                if slope is None:
                    raise MethodError(
                        "cam needs a score of the class scores that glowmap reads; use grad_cam for others"
                    )
                return wide(slope) @ wide(weight)
        raise MethodError(
            f"cam needs a model that averages layer {layer!r} over space and ends in one linear layer, and "
            f"{type(self._run.module).__name__} does not; use grad_cam, which is the same there and works elsewhere"
        )

    def rescore_maps(self, layer: str, image: int, count: int, make: Make) -> Scores:
        trunk = self._run.trunks[layer]
        answer = partial(self._run.on_maps, layer, image)
        return self._asked(image, answer, count, make, trunk.widest_after)

    def rescore_images(self, _layer: str, image: int, count: int, make: Make) -> Scores:
        return self._asked(image, partial(self._run.on_images, image), count, make, self._widest())

    def gradients_of_maps(self, layer: str, image: int, count: int, make: Make) -> Maps:
        found = []
        for maps in _chunks(count, make, self._chunk(3 * self._run.trunks[layer].widest_after), "gradients"):
            asked = maps.detach().requires_grad_()
            # a copy, so that what the head does in place spoils no record
            scores = self._score(image, self._run.on_maps(layer, image, asked.clone()), len(maps))
            found.append(_gradient(scores, asked, layer))
        return torch.cat(found)

    def gradients_of_images(self, layer: str, image: int, count: int, make: Make) -> tuple[Maps, Maps]:
        found: list[tuple[Tensor, Tensor]] = []
        for images in _chunks(count, make, self._chunk(3 * self._widest()), "gradients"):
            with record({layer: self._run.layers[layer]}) as recording:
                output = self._run.on_images(image, images)
            scores = self._score(image, output, len(images))  # outside: a target may itself run the model
            gradients = recording.gradients(scores)[layer]
            maps, rows = recording[layer].output.detach(), len(images)
            found.append((self._laid(maps, layer, rows), self._laid(gradients, layer, rows)))
        return torch.cat([activations for activations, _ in found]), torch.cat([slopes for _, slopes in found])

    def input_gradients(self, layer: str, image: int, count: int, make: Make) -> Tensor:
        found = []
        for images in _chunks(count, make, self._chunk(6 * self._widest()), "gradients"):
            asked = images.detach().clone().requires_grad_()
            scores = self._score(image, self._run.on_images(image, asked), len(images))
            found.append(wide(_gradient(scores, asked, "the input")))
        return torch.cat(found)

    def guided_gradients(self, _layer: str) -> Tensor:
        guiding = Guiding()
        images, scores = self._watched(guiding)
        self._note(guiding.notes(type(self._run.module).__name__))
        return wide(_gradient(scores, images, "the input"))

    def bias_gradients(self, _layer: str) -> list[Tensor]:
        """List the image times its gradient, and then what each operation adds to its input, times the gradient there."""
        biases = Biases()
        images, scores = self._watched(biases)
        terms = [wide(images.detach()) * wide(_gradient(scores, images, "the input"))]
        terms += biases.terms(len(images))
        self._note(shortfalls(terms, scores, images.dtype))
        return terms

    def _watched(self, watcher: Guiding | Biases) -> tuple[Tensor, Scores]:
        """Run the model again as it was run, in a graph that begins at the images, and watch its operations alone."""
        images = self._run.batch.images.detach().clone().requires_grad_()
        batch = self._run.batch.changed(lambda _: images.clone())  # as the model may write into its input
        with watcher:
            output = called(self._run.module, batch)
        answer = self._run.read(output, len(images))
        return images, checked(self._question.score(answer), len(images), self._question.wording(answer, 0))

    def _note(self, notes: list[str]) -> None:
        self._run.notes += [note for note in notes if note not in self._run.notes]

    def _asked(self, image: int, answer: Callable[[Tensor], Any], count: int, make: Make, widest: int) -> Scores:
        scores = []
        with torch.no_grad():
            for changed in _chunks(count, make, self._chunk(widest), "asking the model"):
                scores.append(wide(self._score(image, answer(changed), len(changed))))
        return torch.cat(scores)

    def _score(self, image: int, output: Any, count: int) -> Scores:
        if image not in self._settled:
            self._settled[image] = settled(self._question, self._run.answer, image)
        question, answer = self._settled[image], self._run.read(output, count)
        if isinstance(question, Custom):
            self._hold_to_copies(question, image, count)
        return checked(question.score(answer), count, question.wording(answer, 0))

    def _hold_to_copies(self, question: Target, image: int, count: int) -> None:
        """Refuse a callable that scores copies of an image otherwise than the image: it knows the batch by position."""
        if (image, count) in self._held:
            return
        self._held.add((image, count))
        answer = self._run.read(copies(self._run.output, image, len(self._run.batch.images), count), count)
        scores, own = checked(question.score(answer), count, question.wording(answer, 0)), self._scores[image]
        if not same_output(scores.detach(), own.detach().expand(count)):
            raise TargetError(
                f"the target {question.wording(answer, 0)!r} scores {count} copies of image {image} otherwise than the image "
                "itself; a method that asks again needs a target that treats all images alike: for classes give a tensor of "
                "labels, for others targets.Each([...])"
            )

    def _chunk(self, widest: int) -> int:
        batch = self._run.batch.images
        return chunk_size(max(widest // len(batch), 1), batch.device)

    def _widest(self) -> int:
        return max(self._run.batch.images.nbytes, *(trunk.widest for trunk in self._run.trunks.values()), 0)

    def _laid(self, tensor: Tensor, layer: str, rows: int | None = None) -> Maps:
        return wide(self._run.maps(layer, tensor, rows))


def _of_image(evidence: Any, image: int) -> Any:
    one = slice(image, image + 1)
    return [part[one] for part in evidence] if isinstance(evidence, list) else evidence[one]


def wide(values: Tensor) -> Tensor:
    """Leave half precision, whose sums over channels overflow and cancel; double precision stays."""
    return values if values.dtype == torch.float64 else values.float()


def _chunks(count: int, make: Make, size: int, text: str) -> Iterator[Tensor]:
    starts = range(0, count, size)
    for start in tracked(starts, len(starts), text):
        yield make(slice(start, min(start + size, count)))


def _gradient(scores: Scores, of: Tensor, what: str) -> Tensor:
    if not scores.requires_grad:
        raise TargetError(f"the score carries no gradient to {what}; a target must not detach what it reads")
    try:
        (gradient,) = torch.autograd.grad(scores.sum(), of, allow_unused=True)
    except RuntimeError as error:
        raise ModelError(f"the backward pass to {what} raised {told(error)}") from error
    if gradient is None:
        raise TargetError(f"the score does not depend on {what}")
    return gradient.detach()


def _linear_heads(module: nn.Module) -> Iterator[tuple[Tensor, Tensor | None]]:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            yield part.weight.detach(), part.bias
        elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) and part.weight[0, 0].numel() == 1:
            yield part.weight.detach().flatten(1), part.bias
