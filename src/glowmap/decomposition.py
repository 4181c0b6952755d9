"""Concepts: what a layer tells apart in an image or a batch, without a question, and which class each would speak for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.capture import borrow
from glowmap.cautions import caution_kind
from glowmap.errors import MethodError, ModelError, TargetError, is_whole_number
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import PassOptions
from glowmap.evidence.preparation import prepared
from glowmap.evidence.session import Session, open_session
from glowmap.explanation.explanation import Explanation, Explanations
from glowmap.explanation.maps import CONCEPTS
from glowmap.inputs import Batch
from glowmap.layers import LayerName, find_layers
from glowmap.models import Model, as_model
from glowmap.shapes import Maps
from glowmap.targets import as_targets

_NEGATIVE = caution_kind("negative-activations", "caution", "Choose a layer after a ReLU.")


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
    if not is_whole_number(count, 1):
        raise MethodError(f"{count!r} concepts were asked for; ask for a whole number of at least one")
    asked = as_model(model)
    named = None if layer is None else find_layers(asked.module, layer)
    batch = asked.read(images)
    found = []
    with borrow(asked.module) as was_training, _visited(asked, batch, named) as visit:
        run, (layers,) = visit.forward(as_targets(None), PassOptions(reruns=True, resumes=True))
        shared = visit.common_fields(run, was_training)
        for name in layers:
            activations = run.maps(name, run.recording[name].output.detach())
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
            cautions = []
            if (activations < 0).any():
                cautions = [_NEGATIVE(f"layer {name!r} has negative activations, which concepts leave out")]
            filled = vectors.reshape(*vectors.shape, *[1] * (maps.ndim - 2)).expand(*vectors.shape, *maps.shape[2:])
            seen = [_seen_in(run, name, image, filled[image]) for image in range(len(maps))]
            for number in range(count):
                told = [_told(run, number, probabilities) for probabilities in seen]
                found.append(
                    Explanation(
                        maps[:, number],
                        torch.tensor([score for _, score in told]),
                        layer=name,
                        method=CONCEPTS,
                        target_names=tuple(wording for wording, _ in told),
                        cautions=(*run.cautions, *visit.cautions(name), *cautions),
                        **shared,
                    )
                )
    return Explanations(found)


@contextmanager
def _visited(model: Model, batch: Batch, named: dict[str, nn.Module] | None) -> Iterator[Session]:
    """Visit the (borrowed) model with what it must be given beside pictures, its class names among it."""
    first = prepared(model, batch, as_targets(None))[0]
    with open_session(first.model, first.batch, named) as visit:
        yield visit


def _seen_in(run: ForwardPass, layer: str, image: int, filled: Tensor) -> Tensor | None:
    """Read what the rest of the model makes of a layer that is filled with each concept's vector."""
    try:
        with torch.no_grad():
            logits = run.read(run.rerun_from_layer(layer, image, filled), len(filled)).logits.float()
    except TargetError:
        return None  # an output without class scores is no error here
    logits = logits.flatten(2).mean(2) if logits.ndim > 2 else logits
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def _told(run: ForwardPass, number: int, probabilities: Tensor | None) -> tuple[str, float]:
    if probabilities is None:
        return f"concept {number + 1}", 0.0
    best = probabilities[number].topk(min(2, probabilities.shape[1]))
    classes = [f"{run.output.name(int(i))} {p:.0%}" for p, i in zip(best.values, best.indices, strict=True)]
    return f"concept {number + 1}: {', '.join(classes)}", float(best.values[0])


_STEPS, _STILL = 400, 1e-6  # of the factors' updates at most, and the relative gain below which they have come to rest
_TINY = 1e-12


def factorised(activations: Maps, count: int, *, together: bool = False) -> tuple[Tensor, Tensor]:
    """Factorise each image's maps, or those of a batch ``together``, so that a concept is the same in all its images.

    Negative activations count as none. Returns the concepts' maps, batch x concept x space, and their vectors, batch x concept x
    channel; the strongest cell of each concept is 1, and its vector what the layer would be there. The first explains most.
    """
    space = activations.shape[2:]
    cells = activations.relu().flatten(2).transpose(1, 2).double()  # batch x cell x channel
    if together:
        weights, vectors = _nmf(cells.flatten(0, 1)[None], count)
        weights, vectors = weights.reshape(len(cells), -1, count), vectors.expand(len(cells), -1, -1)
        strongest = weights.amax((0, 1), keepdim=True)
    else:
        weights, vectors = _nmf(cells, count)
        strongest = weights.amax(1, keepdim=True)
    scale = strongest.clamp_min(_TINY)
    maps, vectors = (weights / scale).transpose(1, 2), vectors * scale.transpose(1, 2)
    energy = maps.pow(2).sum(2) * vectors.pow(2).sum(2)
    shared = energy.sum(0, keepdim=True).expand_as(energy) if together else energy
    order = shared.argsort(dim=1, descending=True, stable=True)
    maps, vectors = (torch.take_along_dim(values, order[..., None], 1) for values in (maps, vectors))
    return maps.reshape(*maps.shape[:2], *space).to(activations.dtype), vectors.to(activations.dtype)


def _nmf(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Factorise batch x cell x channel by multiplicative updates (Lee and Seung 2001), from the singular vectors."""
    weights, vectors = _start(values, count)
    last = torch.full(values.shape[:1], torch.inf, dtype=values.dtype, device=values.device)
    for _ in range(_STEPS):
        transposed = weights.transpose(1, 2)
        vectors = vectors * (transposed @ values) / (transposed @ weights @ vectors).clamp_min(_TINY)
        transposed = vectors.transpose(1, 2)
        weights = weights * (values @ transposed) / (weights @ (vectors @ transposed)).clamp_min(_TINY)
        error = (values - weights @ vectors).flatten(1).norm(dim=1)
        if bool((last - error <= _STILL * error).all()):
            break
        last = error
    return weights, vectors


def _start(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Begin at the positive parts of the singular vectors (Boutsidis and Gallopoulos 2008), the same on every run."""
    left, sizes, right = torch.linalg.svd(values, full_matrices=False)
    left, right = left[..., :count], right[:, :count]
    roots = sizes[:, :count].sqrt()
    plus = left.relu().norm(dim=1) * right.relu().norm(dim=2)
    minus = (-left).relu().norm(dim=1) * (-right).relu().norm(dim=2)
    sign = torch.where(plus >= minus, 1.0, -1.0).to(values.dtype)
    # what is zero stays zero under multiplicative updates, so nothing begins there
    floor = values.mean((1, 2), keepdim=True) / 100 + _TINY
    weights = (left * sign[:, None] * roots[:, None]).relu() + floor
    vectors = (right * sign[..., None] * roots[..., None]).relu() + floor
    missing = count - weights.shape[2]
    if missing > 0:  # fewer channels or cells than concepts
        weights = torch.cat([weights, floor.expand(-1, weights.shape[1], missing)], 2)
        vectors = torch.cat([vectors, floor.expand(-1, missing, vectors.shape[2])], 1)
    return weights, vectors
