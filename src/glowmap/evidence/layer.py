"""Evidence at a layer, from the forward pass and backward passes of the head: activations and derivatives by them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import same_output
from glowmap.errors import MethodError
from glowmap.evidence.kinds import ScoredPass, evidence
from glowmap.shapes import Maps, PixelSets, Scores


@evidence(is_cheap=True)
def activations(scored: ScoredPass, layer: str) -> Maps:
    """Return the layer's output, batch x channel x grid."""
    return scored.forward_pass.maps(layer, scored.forward_pass.recording[layer].output.detach())


@evidence(joins_layers=True)
def activations_of_layers(scored: ScoredPass, _layer: str) -> list[Maps]:
    """Return the outputs of all explained layers, the last to run first."""
    ran = scored.forward_pass.recording.in_order()
    return [scored.once(activations, name) for name in reversed(ran) if name in scored.layers]


@evidence(graph="layer")
def class_weights(scored: ScoredPass, layer: str) -> Tensor:
    """Return the score's weight on each channel of a head that pools the layer and is linear, batch x channel.

    The head is recognised by what it computes. Its rows are weighed as the score weighs the logits. Raises MethodError for a
    model with another head.
    """
    module = scored.forward_pass.module
    pooled = scored.once(activations, layer).flatten(2).mean(2)
    for weight, bias in _linear_heads(module):
        output = scored.forward_pass.output.outputs
        if weight.shape != (output.shape[1], pooled.shape[1]) or output.ndim != 2:
            continue
        logits = F.linear(pooled, tree.full_precision(weight), None if bias is None else tree.full_precision(bias))
        if same_output(logits.to(output.dtype), output.detach()):
            (slope,) = torch.autograd.grad(scored.scores.sum(), output, retain_graph=True, allow_unused=True)
            if slope is None:
                raise MethodError("cam needs a score of the class scores that glowmap reads; use grad_cam for others")
            return tree.full_precision(slope) @ tree.full_precision(weight)
    raise MethodError(
        f"cam needs a model that averages layer {layer!r} over space and ends in one linear layer, and "
        f"{type(module).__name__} does not; use grad_cam, which is the same there and works elsewhere"
    )


def _linear_heads(module: nn.Module) -> Iterator[tuple[Tensor, Tensor | None]]:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            yield part.weight.detach(), part.bias
        elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) and part.weight[0, 0].numel() == 1:
            yield part.weight.detach().flatten(1), part.bias


@evidence(grid="")
def scores(scored: ScoredPass) -> Scores:
    """Return the target's score of each image."""
    return tree.full_precision(scored.scores.detach())


@evidence(grid="input")
def images(scored: ScoredPass) -> Tensor:
    """Return the model's input, batch x colour x pixels."""
    return tree.full_precision(scored.forward_pass.batch.images)


@evidence(cost="1 backward of the head", graph="layer", is_cheap=True)
def gradients(scored: ScoredPass, layer: str) -> Maps:
    """Return the score's gradient by the activations, of their shape."""
    return scored.forward_pass.maps(layer, scored.layer_gradients[layer])


@evidence(cost="2 more of the head", graph="layer")
def curvature(scored: ScoredPass, layer: str) -> Maps:
    """Return the score's Hessian by the activations, times the activations."""
    return scored.forward_pass.maps(layer, scored.forward_pass.recording.curvature(scored.scores, layer))


@dataclass(frozen=True)
class GradientSummary:
    """What the gradients at a layer say of a map: where they are zero, and how much of them an average over the grid loses."""

    zero: PixelSets | None = None  # the cells in which no channel has a gradient, batch x grid
    # the share of the gradients' power that is lost when each channel's are averaged over the grid, one an image; None where an
    # average loses nothing: for a head that pools the layer, and for a target about all places alike
    averaged_away: Scores | None = None


NO_GRADIENTS = GradientSummary()  # of a method that needs none


def gradient_summary(scored: ScoredPass, layer: str) -> GradientSummary:
    """Summarise the gradients at a layer."""
    maps = scored.once(gradients, layer)
    zero = (maps == 0).all(1)
    if not scored.target.is_local(scored.forward_pass.output):
        return GradientSummary(zero)
    flat = maps.flatten(2)
    power, of_means = flat.square().mean(2).sum(1), flat.mean(2).square().sum(1)
    return GradientSummary(zero, 1 - of_means / power.clamp_min(torch.finfo(power.dtype).tiny))
