"""Concepts: what a layer tells apart in an image or a batch, without a question, and which class each would speak for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.capture import borrowed
from glowmap.errors import MethodError, ModelError, TargetError
from glowmap.explanation import Explanation, Explanations
from glowmap.forward import Run
from glowmap.images import Batch
from glowmap.layers import LayerName
from glowmap.methods.factorisation import NAME, factorised
from glowmap.models import Model
from glowmap.preparing import prepared
from glowmap.road import Explainer
from glowmap.structure import wide
from glowmap.targets import as_questions
from glowmap.visit import Visit


def concepts(
    model: nn.Module | Model,
    images: Any,
    *,
    layer: LayerName | Sequence[LayerName] | None = None,
    count: int = 4,
    together: bool = False,
) -> Explanations:
    """Split a layer into a few concepts: one explanation for each, the one that explains most first.

    ``together`` factorises the batch as one, so that a concept means the same in all its images. The wording of a concept names
    the classes that the rest of the model sees where the layer is filled with it, and its score is the first one's
    probability; where the model has no class scores it is 0. Collins et al., ECCV 2018, arXiv:1806.10206. Raises MethodError
    for fewer than one concept, and as :func:`glowmap.explain` does.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise MethodError(f"{count!r} concepts were asked for; ask for a whole number of at least one")
    explainer = Explainer(model, layer=layer)
    batch = explainer.model.read(images)
    found = []
    with borrowed(explainer.model.module) as was_training, _visited(explainer, batch) as visit:
        layers = visit.layers(blindly=True)
        run = visit.run(layers, asks=True, resuming=True)
        shared = visit.shared(run, was_training)
        for name in layers:
            activations = wide(run.maps(name, run.recording[name].output.detach()))
            most = min(activations.shape[1], activations[0, 0].numel() * (len(activations) if together else 1))
            if count > most:
                raise MethodError(
                    f"{count} concepts were asked for, and layer {name!r} has at most {most} to tell apart"
                )
            if not activations.isfinite().all():
                raise ModelError(
                    f"NaN or infinity in the activations of layer {name!r}; look for overflow in the model"
                )
            maps, vectors = factorised(activations, count, together=together)
            notes = [f"layer {name!r} has negative activations, which no concept counts"] * bool(
                (activations < 0).any()
            )
            filled = vectors.reshape(*vectors.shape, *[1] * (maps.ndim - 2)).expand(*vectors.shape, *maps.shape[2:])
            seen = [_seen_in(run, name, image, filled[image]) for image in range(len(maps))]
            for number in range(count):
                told = [_told(run, number, probabilities) for probabilities in seen]
                found.append(
                    Explanation(
                        maps[:, number],
                        torch.tensor([score for _, score in told]),
                        layer=name,
                        method=NAME,
                        targets=tuple(wording for wording, _ in told),
                        notes=(*run.notes, *visit.doubts(name), *notes),
                        **shared,
                    )
                )
    return Explanations(found)


@contextmanager
def _visited(explainer: Explainer, batch: Batch) -> Iterator[Visit]:
    """Visit the (borrowed) model with what it must be given beside pictures, its class names among it."""
    first = prepared(explainer.model, batch, as_questions(None))[0]
    with explainer.visit(first.batch, first.model) as visit:
        yield visit


def _seen_in(run: Run, layer: str, image: int, filled: Tensor) -> Tensor | None:
    """Read what the rest of the model makes of a layer that is filled with each concept's vector."""
    try:
        with torch.no_grad():
            logits = run.read(run.on_maps(layer, image, filled), len(filled)).logits.float()
    except TargetError:
        return None  # an output without class scores is no error here
    logits = logits.flatten(2).mean(2) if logits.ndim > 2 else logits
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def _told(run: Run, number: int, probabilities: Tensor | None) -> tuple[str, float]:
    if probabilities is None:
        return f"concept {number + 1}", 0.0
    best = probabilities[number].topk(min(2, probabilities.shape[1]))
    classes = [f"{run.answer.name(int(i))} {p:.0%}" for p, i in zip(best.values, best.indices, strict=True)]
    return f"concept {number + 1}: {', '.join(classes)}", float(best.values[0])
