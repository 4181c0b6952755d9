"""Concepts: the parts that a layer distinguishes in an image or a batch, without a target, and the classes each speaks for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.capture import borrow
from glowmap.cautions import caution_kind
from glowmap.errors import MethodError, ModelError, TargetError, is_whole_number
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import PassOptions
from glowmap.evidence.preparation import prepared
from glowmap.evidence.session import Session
from glowmap.explanation.explanation import Explanation, Explanations
from glowmap.explanation.maps import CONCEPTS
from glowmap.layers import LayerName, find_layers
from glowmap.models import Model, as_model
from glowmap.shapes import Maps
from glowmap.targets import as_targets

NEGATIVE_ACTIVATIONS = caution_kind("negative-activations", "caution", "Choose a layer after a ReLU.")


def concepts(
    model: nn.Module | Model,
    images: Any,
    *,
    layer: LayerName | Sequence[LayerName] | None = None,
    count: int = 4,
    together: bool = False,
) -> Explanations:
    """Decompose the activations of a layer into a few concepts, each an explanation; the one that explains most comes first.

    ``together`` decomposes the batch as one, so that a concept means the same in all images. A concept is named for the two
    likeliest classes if the layer is filled with it, and its score is the probability of the first; 0 if the model has no class
    scores. Collins et al., ECCV 2018, arXiv:1806.10206. Raises MethodError for a count below one or above what the layer can
    distinguish, and the errors of :func:`glowmap.explain`.
    """
    if not is_whole_number(count, 1):
        raise MethodError(f"{count!r} concepts were asked for; ask for a whole number of at least one")
    model = as_model(model)
    named = None if layer is None else find_layers(model.module, layer)
    batch = model.read(images)
    explanations: list[Explanation] = []
    with borrow(model.module) as was_training:
        group = prepared(model, batch, as_targets(None))[0]  # the class names come with what is beside the pictures
        session = Session(group.model, group.batch, named)
        with group.model.around_forward(group.model.module):
            forward_pass, (layers,) = session.forward(as_targets(None), PassOptions(reruns=True, resumes=True))
            common = session.common_fields(forward_pass, was_training)
            for name in layers:
                concepts_here = _concepts(forward_pass, name, count, together, common)
                layer_cautions = (
                    *forward_pass.cautions,
                    *session.cautions(name),
                )  # also of the reruns for these concepts
                explanations += [
                    replace(concept, cautions=(*layer_cautions, *concept.cautions)) for concept in concepts_here
                ]
    return Explanations(explanations)


def _concepts(
    forward_pass: ForwardPass, layer: str, count: int, together: bool, fields: dict[str, Any]
) -> list[Explanation]:
    """Decompose one layer. ``fields`` are those of the explanations that do not depend on the concept."""
    activations = forward_pass.maps(layer, forward_pass.recording[layer].output.detach())
    most = min(activations.shape[1], activations[0, 0].numel() * (len(activations) if together else 1))
    if count > most:
        raise MethodError(f"{count} concepts were asked for, and layer {layer!r} has at most {most} to tell apart")
    if not activations.isfinite().all():
        raise ModelError(f"NaN or infinity in the activations of layer {layer!r}; look for overflow in the model")
    if (activations < 0).any():
        caution = NEGATIVE_ACTIVATIONS(f"layer {layer!r} has negative activations, which concepts leave out")
        fields = fields | {"cautions": (caution,)}
    maps, vectors = factorised(activations, count, together=together)
    filled = vectors.reshape(*vectors.shape, *[1] * (maps.ndim - 2)).expand(*vectors.shape, *maps.shape[2:])
    probabilities = [_class_probabilities(forward_pass, layer, image, filled[image]) for image in range(len(maps))]
    explanations = []
    for number in range(count):
        described = [_describe(forward_pass, number, of_image) for of_image in probabilities]
        names, scores = zip(*described, strict=True)
        explanations.append(
            Explanation(
                maps[:, number], torch.tensor(scores), layer=layer, method=CONCEPTS, target_names=names, **fields
            )
        )
    return explanations


def _class_probabilities(forward_pass: ForwardPass, layer: str, image: int, filled: Tensor) -> Tensor | None:
    """Compute the class probabilities, concept x class, if the layer is filled with each concept's vector.

    None for a model without class scores.
    """
    try:
        with torch.no_grad():
            raw_output = forward_pass.rerun_from_layer(layer, image, filled)
            logits = forward_pass.read(raw_output, len(filled)).logits.float()
    except TargetError:
        return None
    logits = logits.flatten(2).mean(2) if logits.ndim > 2 else logits
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def _describe(forward_pass: ForwardPass, number: int, probabilities: Tensor | None) -> tuple[str, float]:
    """Return a concept's name, and the probability of its likeliest class."""
    if probabilities is None:
        return f"concept {number + 1}", 0.0
    best = probabilities[number].topk(min(2, probabilities.shape[1]))
    output = forward_pass.output
    classes = [f"{output.name(int(index))} {share:.0%}" for share, index in zip(best.values, best.indices, strict=True)]
    return f"concept {number + 1}: {', '.join(classes)}", float(best.values[0])


_STEPS, _TOLERANCE = 400, 1e-6  # updates at most, and the relative gain below which they have converged
_TINY = 1e-12


def factorised(activations: Maps, count: int, *, together: bool = False) -> tuple[Tensor, Tensor]:
    """Factorise each image's activations, or those of the batch ``together`` with the same concepts in all images.

    Negative activations count as 0. Returns the concepts' maps, batch x concept x grid, and their vectors, batch x concept x
    channel. The strongest cell of each concept is 1, and its vector is the activation there. The first concept explains most.
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
    """Factorise non-negative values, batch x cell x channel, by multiplicative updates (Lee and Seung 2001)."""
    weights, vectors = _start(values, count)
    last = torch.full(values.shape[:1], torch.inf, dtype=values.dtype, device=values.device)
    for _ in range(_STEPS):
        transposed = weights.transpose(1, 2)
        vectors = vectors * (transposed @ values) / (transposed @ weights @ vectors).clamp_min(_TINY)
        transposed = vectors.transpose(1, 2)
        weights = weights * (values @ transposed) / (weights @ (vectors @ transposed)).clamp_min(_TINY)
        error = (values - weights @ vectors).flatten(1).norm(dim=1)
        if bool((last - error <= _TOLERANCE * error).all()):
            break
        last = error
    return weights, vectors


def _start(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Initialise the factors with the positive parts of the singular vectors (Boutsidis and Gallopoulos 2008)."""
    left, sizes, right = torch.linalg.svd(values, full_matrices=False)
    left, right = left[..., :count], right[:, :count]
    roots = sizes[:, :count].sqrt()
    plus = left.relu().norm(dim=1) * right.relu().norm(dim=2)
    minus = (-left).relu().norm(dim=1) * (-right).relu().norm(dim=2)
    sign = torch.where(plus >= minus, 1.0, -1.0).to(values.dtype)
    # multiplicative updates keep a zero, so no factor starts at zero
    floor = values.mean((1, 2), keepdim=True) / 100 + _TINY
    weights = (left * sign[:, None] * roots[:, None]).relu() + floor
    vectors = (right * sign[..., None] * roots[..., None]).relu() + floor
    missing = count - weights.shape[2]
    if missing > 0:  # fewer channels or cells than concepts
        weights = torch.cat([weights, floor.expand(-1, weights.shape[1], missing)], 2)
        vectors = torch.cat([vectors, floor.expand(-1, missing, vectors.shape[2])], 1)
    return weights, vectors
