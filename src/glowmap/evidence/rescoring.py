"""Evidence from running the model again, for one image at a time: scores and gradients of changed images and activations.

Each kind is a function that the method calls with ``count`` and ``make`` (see :class:`glowmap.methods.Query`). Changed inputs
are made and run a chunk at a time.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glowmap import tree
from glowmap.capture import record
from glowmap.errors import ModelError, TargetError, summarise
from glowmap.evidence.kinds import ScoredPass, evidence
from glowmap.methods import GRADIENT_FREE, MakeBatch
from glowmap.progress import tracked
from glowmap.shapes import Images, Maps, Scores

# Largest outputs a chunk may need at once: of a layer its input, its output and what a convolution unrolls.
_PER_OUTPUT = 4
_WITH_GRADIENTS = 3  # times as much where a backward pass keeps them
_TO_THE_INPUT = 6  # and where it goes back to the input
_BUDGET = {"cpu": 96 * 2**20, "cuda": 2**31}  # bytes; more is no faster, and on a CPU slower, as it leaves the caches


@evidence(cost="many forward and backward of the head", reruns="head", per_image=True)
def gradients_of_maps(scored: ScoredPass, layer: str, image: int, count: int, make: MakeBatch) -> Maps:
    """Return the score's gradients at other activations."""
    gradients = []
    widest = _WITH_GRADIENTS * scored.forward_pass.prefixes[layer].widest_after
    for maps in _chunks(scored, count, make, widest, "gradients"):
        leaf = maps.detach().requires_grad_()
        # a copy, so that what the head does in place spoils no record
        output = scored.forward_pass.rerun_from_layer(layer, image, leaf.clone())
        gradients.append(gradient_by(leaf, scored.score_copies(image, output, len(maps)), layer))
    return torch.cat(gradients)


@evidence(cost="many forward and backward", reruns="model", per_image=True)
def gradients_of_images(scored: ScoredPass, layer: str, image: int, count: int, make: MakeBatch) -> tuple[Maps, Maps]:
    """Return the activations of other images, and the score's gradients by them."""
    activations, gradients = [], []
    for images in _chunks(scored, count, make, _WITH_GRADIENTS * _widest(scored), "gradients"):
        with record({layer: scored.forward_pass.layers[layer]}, instead=GRADIENT_FREE) as recording:
            output = scored.forward_pass.rerun(image, images)
        scores = scored.score_copies(image, output, len(images))  # outside: a target may itself run the model
        gradients.append(scored.forward_pass.maps(layer, recording.gradients(scores)[layer]))
        activations.append(scored.forward_pass.maps(layer, recording[layer].output.detach()))
    return torch.cat(activations), torch.cat(gradients)


@evidence(cost="many forwards of the head", reruns="head", per_image=True)
def rescore_maps(scored: ScoredPass, layer: str, image: int, count: int, make: MakeBatch) -> Scores:
    """Return the scores of other activations."""
    run = partial(scored.forward_pass.rerun_from_layer, layer, image)
    return _rescore(scored, image, run, count, make, scored.forward_pass.prefixes[layer].widest_after)


@evidence(cost="many forwards", grid="input", reruns="model", per_image=True)
def rescore_images(scored: ScoredPass, image: int, count: int, make: MakeBatch) -> Scores:
    """Return the scores of other images."""
    return _rescore(scored, image, partial(scored.forward_pass.rerun, image), count, make, _widest(scored))


@evidence(cost="many forward and backward", grid="input", reruns="model", per_image=True)
def input_gradients_of_images(scored: ScoredPass, image: int, count: int, make: MakeBatch) -> Images:
    """Return the score's gradients by the input, at other images."""
    gradients = []
    for images in _chunks(scored, count, make, _TO_THE_INPUT * _widest(scored), "gradients"):
        leaf = images.detach().clone().requires_grad_()
        output = scored.forward_pass.rerun(image, leaf)
        gradients.append(tree.full_precision(gradient_by(leaf, scored.score_copies(image, output, len(images)))))
    return torch.cat(gradients)


def gradient_by(leaf: Tensor, scores: Scores, name: str = "the input", *, keep_graph: bool = False) -> Tensor:
    """Differentiate scores by a leaf of their graph. Raises TargetError where they do not depend on it."""
    if not scores.requires_grad:
        raise TargetError(
            f"the score carries no gradient to {name}: the target detaches what it reads, or the model runs under no_grad or is "
            f"quantised; mend that, or use {GRADIENT_FREE}"
        )
    try:
        (gradient,) = torch.autograd.grad(scores.sum(), leaf, retain_graph=keep_graph, allow_unused=True)
    except RuntimeError as error:
        raise ModelError(f"the backward pass to {name} raised {summarise(error)}") from error
    if gradient is None:
        raise TargetError(f"the score does not depend on {name}")
    return gradient.detach()


def _rescore(
    scored: ScoredPass, image: int, run: Callable[[Tensor], Any], count: int, make: MakeBatch, widest: int
) -> Scores:
    scores = []
    with torch.no_grad():
        for changed in _chunks(scored, count, make, widest, "asking the model"):
            scores.append(tree.full_precision(scored.score_copies(image, run(changed), len(changed))))
    return torch.cat(scores)


def _widest(scored: ScoredPass) -> int:
    """Compute the bytes of the largest tensor in the forward pass."""
    return max(
        scored.forward_pass.batch.images.nbytes, *(trunk.widest for trunk in scored.forward_pass.prefixes.values()), 0
    )


def _chunks(scored: ScoredPass, count: int, make: MakeBatch, widest: int, text: str) -> Iterator[Tensor]:
    """Make the changed inputs a chunk at a time; ``widest`` is what the largest output took for the whole batch, in bytes."""
    size = chunk_size(max(widest // len(scored.forward_pass.batch.images), 1), scored.forward_pass.batch.images.device)
    starts = range(0, count, size)
    for start in tracked(starts, len(starts), text):
        yield make(slice(start, min(start + size, count)))


def chunk_size(widest: int, device: torch.device) -> int:
    """Compute how many inputs to run at once if the largest output of one takes ``widest`` bytes: from 1 to 256."""
    budget = min(_free_memory(device) // 8, _BUDGET.get(device.type, 2**28))
    return max(1, min(256, budget // (_PER_OUTPUT * widest)))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not known on this system
        return 2**31
