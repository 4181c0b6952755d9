"""Evidence: what a method may ask for about one question, made when it is asked for and not before.

Each kind that a method's parameter can name (the table is in ``methods/_method.py``) is a method of :class:`Evidence` here.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import BiasGradients, GuidedReLU, completeness_gap, record, repeat_image, same_output
from glowmap.capture.attention import AttentionRecorder, enclosing
from glowmap.capture.call import called
from glowmap.errors import MethodError, ModelError, TargetError, told
from glowmap.evidence.attention import AttentionGradients, attended
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.memory import chunk_size
from glowmap.methods import ASKING, GRADIENT_FREE, Attention, Make
from glowmap.progress import tracked
from glowmap.shapes import Maps, PixelSets, Scores
from glowmap.targets import Each, Target, by_callable, checked, of_places, settled


class Evidence:
    """What the methods ask for about one question, for each of the recorded layers."""

    def __init__(self, run: ForwardPass, question: Target, scores: Scores, layers: Sequence[str] | None = None) -> None:
        self._run, self._question, self._scores = run, question, scores
        self._layers = list(run.layers) if layers is None else list(layers)  # that this question is about
        self._gradients: dict[str, Tensor] | None = None
        self._without: dict[str, PixelSets] = {}
        self._settled: dict[int, Target] = {}
        self._held: set[tuple[int, int]] = set()

    @property
    def device(self) -> torch.device:
        """Where the model's input lies."""
        return self._run.batch.images.device

    @property
    def cautions(self) -> list[str]:
        """What came up while evidence was made."""
        return self._run.cautions

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
        return [self.activations(name) for name in reversed(self._run.recording.in_order()) if name in self._layers]

    def scores(self, _layer: str) -> Scores:
        return tree.full_precision(self._scores.detach())

    def images(self, _layer: str) -> Tensor:
        return tree.full_precision(self._run.batch.images)

    def gradients(self, layer: str) -> Maps:
        if self._gradients is None:  # of all layers at once, and kept: the graph may be asked again
            self._gradients = self._run.recording.gradients(self._scores, keep_graph=True, names=self._layers)
        return self._laid(self._gradients[layer], layer)

    def without_gradient(self, layer: str) -> PixelSets:
        """Tell in which cells no channel has a gradient: batch x space."""
        if layer not in self._without:
            self._without[layer] = (self.gradients(layer) == 0).all(1)
        return self._without[layer]

    def cancelled(self, layer: str) -> Scores | None:
        """Tell which share of the gradients' power is gone once each channel's are averaged over the places of the layer.

        None at a head that pools the layer, and where the question is about all places alike.
        """
        if not of_places(self._question, self._run.answer):
            return None
        gradients = self.gradients(layer).flatten(2)
        whole, kept = gradients.square().mean(2).sum(1), gradients.mean(2).square().sum(1)
        return 1 - kept / whole.clamp_min(torch.finfo(whole.dtype).tiny)

    def curvature(self, layer: str) -> Maps:
        return self._laid(self._run.recording.curvature(self._scores, layer), layer)

    def class_weights(self, layer: str) -> Tensor:
        """Find the pooled linear head by what it computes, and weigh its rows as the score weighs the logits."""
        answer, pooled = self._run.answer, self.activations(layer).flatten(2).mean(2)
        for weight, bias in _linear_heads(self._run.module):
            if weight.shape != (answer.outputs.shape[1], pooled.shape[1]) or answer.outputs.ndim != 2:
                continue
            logits = F.linear(pooled, tree.full_precision(weight), None if bias is None else tree.full_precision(bias))
            if same_output(logits.to(answer.outputs.dtype), answer.outputs.detach()):
                (slope,) = torch.autograd.grad(self._scores.sum(), answer.outputs, retain_graph=True, allow_unused=True)
                if slope is None:
                    raise MethodError(
                        "cam needs a score of the class scores that glowmap reads; use grad_cam for others"
                    )
                return tree.full_precision(slope) @ tree.full_precision(weight)
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
            with record({layer: self._run.layers[layer]}, instead=GRADIENT_FREE) as recording:
                output = self._run.on_images(image, images)
            scores = self._score(image, output, len(images))  # outside: a target may itself run the model
            gradients = recording.gradients(scores)[layer]
            maps = recording[layer].output.detach()
            found.append((self._laid(maps, layer), self._laid(gradients, layer)))
        return torch.cat([activations for activations, _ in found]), torch.cat([slopes for _, slopes in found])

    def input_gradients(self, layer: str, image: int, count: int, make: Make) -> Tensor:
        found = []
        for images in _chunks(count, make, self._chunk(6 * self._widest()), "gradients"):
            asked = images.detach().clone().requires_grad_()
            scores = self._score(image, self._run.on_images(image, asked), len(images))
            found.append(tree.full_precision(_gradient(scores, asked, "the input")))
        return torch.cat(found)

    def guided_gradients(self, _layer: str) -> Tensor:
        guiding = GuidedReLU()
        images, output = self._watched(guiding)
        for caution in guiding.cautions(type(self._run.module).__name__):
            self._run.caution(caution)
        return tree.full_precision(_gradient(self._scored(output), images, "the input"))

    def bias_gradients(self, _layer: str) -> list[Tensor]:
        """List the image times its gradient, and then what each operation adds to its input, times the gradient there."""
        biases = BiasGradients()
        images, output = self._watched(biases)
        scores = self._scored(output)
        terms = [tree.full_precision(images.detach()) * tree.full_precision(_gradient(scores, images, "the input"))]
        terms += biases.terms(len(images))
        for caution in completeness_gap(terms, scores, images.dtype):
            self._run.caution(caution)
        return terms

    def attention(self, _layer: str) -> Attention:
        return self._attended.attention

    def attention_gradients(self, _layer: str) -> list[Tensor]:
        return self._attended.weight_gradients

    def output_gradients(self, _layer: str) -> list[Tensor]:
        return self._attended.output_gradients

    def own_gradients(self, _layer: str) -> list[Tensor]:
        run = self._run
        questions = Each([settled(self._question, run.answer, image) for image in range(len(run.batch.images))])

        def ask() -> Scores:
            return self._scored(called(run.module, run.batch.copied()), questions)

        return self._attended.own_gradients(ask, self._scores)

    @cached_property
    def _attended(self) -> AttentionGradients:
        """Run the model again with its attention watched, and hold it to what it said before."""
        run, watcher = self._run, AttentionRecorder()
        name = type(run.module).__name__
        with enclosing(run.module, watcher):
            images, output = self._watched(watcher)
        if not same_output(tree.map(output, Tensor.detach), tree.map(run.output, Tensor.detach)):
            raise MethodError(
                f"{name} answers otherwise when it is run again with its attention watched: it depends on chance, or on how "
                "often it is called; use a method that needs no attention, as grad_cam"
            )
        return attended(name, watcher, images, self._scored(output), run.grids())

    def _watched(self, watcher: GuidedReLU | BiasGradients | AttentionRecorder) -> tuple[Tensor, Any]:
        """Run the model again as it was run, in a graph that begins at the images, and watch its operations alone."""
        images = self._run.batch.images.detach().clone().requires_grad_()
        batch = self._run.batch.changed(lambda _: images.clone())  # as the model may write into its input
        with watcher:
            return images, called(self._run.module, batch)

    def _scored(self, output: Any, question: Target | None = None) -> Scores:
        """Ask the question about the batch again, by another output."""
        question, count = question or self._question, len(self._run.batch.images)
        answer = self._run.read(output, count)
        return checked(question.score(answer), count, question.describe(answer, 0))

    def _asked(self, image: int, answer: Callable[[Tensor], Any], count: int, make: Make, widest: int) -> Scores:
        scores = []
        with torch.no_grad():
            for changed in _chunks(count, make, self._chunk(widest), "asking the model"):
                scores.append(tree.full_precision(self._score(image, answer(changed), len(changed))))
        return torch.cat(scores)

    def _score(self, image: int, output: Any, count: int) -> Scores:
        if image not in self._settled:
            self._settled[image] = settled(self._question, self._run.answer, image)
        question, answer = self._settled[image], self._run.read(output, count)
        if by_callable(question):
            self._hold_to_copies(question, image, count)
        return checked(question.score(answer), count, question.describe(answer, 0))

    def _hold_to_copies(self, question: Target, image: int, count: int) -> None:
        """Refuse a callable that scores copies of an image otherwise than the image: it knows the batch by position."""
        if (image, count) in self._held:
            return
        self._held.add((image, count))
        answer = self._run.read(repeat_image(self._run.output, image, len(self._run.batch.images), count), count)
        scores, own = checked(question.score(answer), count, question.describe(answer, 0)), self._scores[image]
        if not same_output(scores.detach(), own.detach().expand(count)):
            raise TargetError(
                f"the target {question.describe(answer, 0)!r} scores {count} copies of image {image} otherwise than the image "
                "itself; a method that asks again needs a target that treats all images alike: for classes give a tensor of "
                "labels, for others targets.Each([...])"
            )

    def _chunk(self, widest: int) -> int:
        batch = self._run.batch.images
        return chunk_size(max(widest // len(batch), 1), batch.device)

    def _widest(self) -> int:
        return max(self._run.batch.images.nbytes, *(trunk.widest for trunk in self._run.trunks.values()), 0)

    def _laid(self, tensor: Tensor, layer: str) -> Maps:
        return tree.full_precision(self._run.maps(layer, tensor))


def _of_image(evidence: Any, image: int) -> Any:
    one = slice(image, image + 1)
    return [part[one] for part in evidence] if isinstance(evidence, list) else evidence[one]


def _chunks(count: int, make: Make, size: int, text: str) -> Iterator[Tensor]:
    starts = range(0, count, size)
    for start in tracked(starts, len(starts), text):
        yield make(slice(start, min(start + size, count)))


def _gradient(scores: Scores, of: Tensor, what: str) -> Tensor:
    if not scores.requires_grad:
        raise TargetError(
            f"the score carries no gradient to {what}: the target detaches what it reads, or the model runs under no_grad or is "
            f"quantised; mend that, or use {GRADIENT_FREE}"
        )
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
