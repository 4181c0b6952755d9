"""Evidence from the attention of all blocks: which tokens are the picture's patches, and the score's gradients by it.

The model runs again with its attention recorded, on its own batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import call_model, same_output
from glowmap.capture.attention import (
    AttentionEdge,
    AttentionRecorder,
    TokenSequence,
    attention_edges,
    record_enclosing,
)
from glowmap.capture.resume import replay_outputs
from glowmap.errors import MethodError, TargetError
from glowmap.evidence.kinds import ScoredPass, evidence
from glowmap.evidence.whole_network import run_again
from glowmap.layers import Grid, Layout
from glowmap.layers.align import LayoutProof, gradients, is_bottleneck
from glowmap.layers.layout import token_layouts
from glowmap.methods import Attention, Block
from glowmap.shapes import Scores, crossed
from glowmap.targets import pin_images

_TRIES = 4  # readings of a sequence that are put to the proof
_ALIGNED = 0.7  # how well tokens must depend on their own part of the picture: of six cells few can rank high


@evidence(cost="1 forward again", grid="attention", reruns="model")
def attention(scored: ScoredPass) -> Attention:
    """Return every block's attention, and which of its tokens are the picture's patches."""
    return scored.once(_recorded).attention


@evidence(cost="1 backward", grid="attention", reruns="model")
def attention_gradients(scored: ScoredPass) -> list[Tensor]:
    """Return the score's gradients by the attention weights of every block."""
    return scored.once(_recorded).weight_gradients


@evidence(cost="1 backward", grid="attention", reruns="model")
def output_gradients(scored: ScoredPass) -> list[Tensor]:
    """Return the score's gradients by the output of every block's attention."""
    return scored.once(_recorded).output_gradients


@evidence(cost="1 forward and backward of the head per block", grid="attention", reruns="model")
def own_gradients(scored: ScoredPass) -> list[Tensor]:
    """Return for each block the gradient of the score that the head gives to its tokens, by its or the pooling's weights."""
    forward_pass = scored.forward_pass
    target = pin_images(scored.target, scored.forward_pass.output)

    def rescore() -> Scores:
        return scored.score_batch(call_model(forward_pass.module, forward_pass.batch.copied()), target)

    return scored.once(_recorded).block_gradients(rescore, scored.scores)


def _recorded(scored: ScoredPass) -> "AttentionGradients":
    """Run the model again with its attention recorded. Raises MethodError where its output is another one then."""
    forward_pass, recorder = scored.forward_pass, AttentionRecorder()
    name = type(forward_pass.module).__name__
    with record_enclosing(forward_pass.module, recorder):
        images, output = run_again(scored, recorder)
    if not same_output(tree.map(output, Tensor.detach), tree.map(forward_pass.raw_output, Tensor.detach)):
        raise MethodError(
            f"{name} answers otherwise when it is run again with its attention watched: it depends on chance, or on how "
            "often it is called; use a method that needs no attention, as grad_cam"
        )
    return attended(name, recorder, images, scored.score_batch(output), forward_pass.reader.grids)


@dataclass(frozen=True, eq=False)
class AttentionGradients:
    """The attention recorded in one run, and the tensors of the graph that leads from it to the scores."""

    attention: Attention
    links: Sequence[AttentionEdge]
    watcher: AttentionRecorder
    scores: Scores
    images: Tensor  # the leaf of the graph

    @cached_property
    def weight_gradients(self) -> list[Tensor]:
        """Differentiate the scores by the weights of every block: batch x head x queries x keys."""
        return self._gradients(self.scores, [link.call.weights for link in self.links])

    @cached_property
    def output_gradients(self) -> list[Tensor]:
        """Differentiate the scores by what every block's attention puts out: batch x head x queries x channel."""
        return self._gradients(self.scores, [link.call.outputs for link in self.links])

    def block_gradients(self, rescore: Callable[[], Scores], expected: Scores) -> list[Tensor]:
        """Feed each block's tokens to the head instead of the last block's, and differentiate by that block's attention.

        ``rescore`` runs the model and scores its output. Raises MethodError unless the last block gives the ``expected`` scores.
        """
        blocks, block_gradients = self._blocks(), []
        pooling = self._pooling
        last, output, tokens = blocks[-1].module, blocks[-1].output, blocks[-1].tokens
        earlier = [(block.module, block.output) for block in blocks[:-1]]
        for block in blocks:
            recorder = AttentionRecorder()
            with recorder, replay_outputs([*earlier, (last, tree.replace(output, tokens, block.tokens.clone()))]):
                scores = rescore()
            # the attention of a text tower may run after the pooling
            poolings = [
                call.weights for call in recorder.calls if pooling and call.weights.shape == pooling.call.weights.shape
            ]
            block_gradients += self._gradients(scores, [poolings[-1] if poolings else block.weights])
        if not same_output(scores.detach(), expected.detach()):
            raise MethodError(
                f"{self.attention.model} does not answer as before when it is run on from its last block, as legrad does; "
                "use gae or rollout"
            )
        return block_gradients

    def _gradients(self, scores: Scores, tensors: list[Tensor]) -> list[Tensor]:
        if not scores.requires_grad:
            raise TargetError("the score carries no gradient to the attention; a target must not detach what it reads")
        slopes = torch.autograd.grad(scores.sum(), tensors, retain_graph=True, allow_unused=True)
        return [
            _by_head(torch.zeros_like(tensor) if slope is None else slope, len(self.images))
            for tensor, slope in zip(tensors, slopes, strict=True)
        ]

    @property
    def _pooling(self) -> AttentionEdge | None:
        """The attention that alone reads the patches, with queries that do not attend to each other; None if there is none."""
        patched = self.attention.patch_sequence
        read = [link for link, slope in zip(self.links, self.output_gradients, strict=True) if slope.any()]
        readers = [link for link in read if link.key_sequence == patched and link.query_sequence != patched]
        alone = len(readers) == 1 and not any(
            link.query_sequence == link.key_sequence == readers[0].query_sequence for link in read
        )
        return readers[0] if alone else None

    def _blocks(self) -> "list[_BlockModule]":
        """Find the modules that are the blocks of the patches: the outermost with one attention inside that return tokens."""
        patched = self.attention.patch_sequence
        last = self.attention.last_used(self.output_gradients, queries=patched, keys=patched)
        calls = [link.call for link in self.links[: last + 1] if link.query_sequence == link.key_sequence == patched]
        shape = (len(self.images), calls[0].weights.shape[-1])
        blocks: list[_BlockModule] = []
        for call in calls:
            enclosing_modules = self.watcher.enclosing[self.watcher.calls.index(call)]
            fitting = [
                _BlockModule(module, output, tensor, call.weights)
                for module, output in enclosing_modules
                for tensor in list(tree.leaves(output))[:1]
                if tensor.ndim == 3 and tuple(tensor.shape[:2]) in (shape, shape[::-1])
            ]
            blocks += fitting[-1:]
        are_alike = len({block.tokens.shape for block in blocks}) == 1 and len(blocks) == len(calls)
        if not are_alike or not self._is_cut(blocks[-1].tokens):
            raise MethodError(
                f"the modules of {self.attention.model} do not return the tokens of each block, or its head reads more than the "
                "last, so that legrad cannot hand them to the head one by one; use gae or rollout"
            )
        return blocks

    def _is_cut(self, tokens: Tensor) -> bool:
        """Return whether the score depends on the picture only through these tokens, with no residual around them."""
        through, whole = gradients(self.scores.sum(), [tokens, self.images])
        return through is not None and whole is not None and is_bottleneck(tokens, through, self.images, whole)


@dataclass(frozen=True, eq=False)
class _BlockModule:
    """A module that is a block: its output, the tokens in that, and the weights of its attention."""

    module: nn.Module
    output: Any
    tokens: Tensor
    weights: Tensor


def attended(
    model: str, watcher: AttentionRecorder, images: Tensor, scores: Scores, grids: Sequence[Grid]
) -> AttentionGradients:
    """Find the blocks and the patches in the attention that was recorded in a run on images (the leaf of its graph).

    ``grids`` are the outputs of convolutions. Raises MethodError for no attention, or none from patch to patch.
    """
    links, sequences = attention_edges(watcher.calls, images)
    batch = len(images)
    if not links:
        raise MethodError(
            f"the attention of {model} knows nothing of the picture: it is detached or runs under torch.no_grad(); use rise or "
            "occlusion"
            if watcher.calls
            else f"no attention was seen in {model}: it has none, or one that is no softmax of scores times values (linear "
            "attention, another library's fused kernel, a scripted module); use grad_cam or layer_cam"
        )
    _refuse_windows(model, links, batch)
    patched, layout = _patches(model, links, sequences, images, grids)
    places = slice(layout.prefix_tokens, layout.prefix_tokens + torch.Size(layout.grid).numel())
    attention = Attention(model, [_block(link, batch) for link in links], patched, places, layout.grid)
    return AttentionGradients(attention, links, watcher, scores, images)


def _block(link: AttentionEdge, batch: int) -> Block:
    call = link.call
    queries, keys = (None if vectors is None else _by_head(vectors, batch) for vectors in (call.queries, call.keys))
    weights, values = _by_head(call.weights, batch), _by_head(call.values, batch)
    return Block(weights, queries, keys, values, link.query_sequence, link.key_sequence, link.inputs)


def _by_head(tensor: Tensor, batch: int) -> Tensor:
    """Shape a block's tensor as batch x head x tokens x channel, where heads may be missing or one axis with the batch."""
    shaped = tensor.detach().reshape(batch, -1, *tensor.shape[-2:])
    return shaped if shaped.dtype == torch.float64 else shaped.float()


def _refuse_windows(model: str, links: Sequence[AttentionEdge], batch: int) -> None:
    for link in links:
        shape = link.call.weights.shape
        if len(shape) not in (3, 4) or shape[0] % batch or (len(shape) == 4 and shape[0] != batch):
            raise MethodError(
                f"the attention of {model} ({crossed(shape)}) does not have one row an image: it goes within windows or along "
                "axes, and cannot be followed from patch to patch; use grad_cam or layer_cam"
            )


def _patches(
    model: str,
    links: Sequence[AttentionEdge],
    sequences: Sequence[TokenSequence],
    images: Tensor,
    grids: Sequence[Grid],
) -> tuple[int, Layout]:
    """Find the sequence of the picture's patches, and where in it they are."""
    firsts = {
        link.query_sequence: link
        for link in reversed(links)
        if link.query_sequence == link.key_sequence and sequences[link.query_sequence].is_of_image
    }
    for patched in sorted(firsts):
        layout = _layout(firsts[patched].call.values, images, grids)
        if layout is not None:
            break
    else:
        counts = ", ".join(dict.fromkeys(str(sequence.count) for sequence in sequences))
        raise MethodError(
            f"the tokens that attend in {model} ({counts}) are no grid whose cells depend on the picture where they lie, or look "
            "at merged ones; use grad_cam or layer_cam"
        )
    querying = [sequences[number] for number in dict.fromkeys(link.query_sequence for link in links)]
    coarser = [
        sequence.count
        for sequence in querying
        if sequence.is_joined and _on_another_grid(_readings(sequence.count, images, grids), layout)
    ]
    if sequences[patched].is_joined or coarser:
        counts = ", ".join(map(str, dict.fromkeys([sequences[patched].count, *coarser])))
        raise MethodError(
            f"the blocks of {model} attend over several grids or joined sequences of tokens ({counts}), which no one map can "
            "follow; use grad_cam or layer_cam"
        )
    return patched, layout


def _layout(values: Tensor, images: Tensor, grids: Sequence[Grid]) -> Layout | None:
    """Find the layout of the patches in a sequence: the first in which tokens depend on the picture at their own place."""
    tokens = values.reshape(len(images), -1, *values.shape[-2:]).transpose(1, 2).flatten(2)
    count, pixels = tokens.shape[1], tuple(images.shape[2:])
    readings = _readings(count, images, grids)[:_TRIES]
    fitting = [grid for grid in dict.fromkeys(grids) if len(grid) == len(pixels) and 1 < math.prod(grid) < count]
    # tokens of a text or of queries may stand before or after the patches
    proof = LayoutProof(images)
    later = (
        proof.token_offset(tokens, Layout("tokens", grid, -1)) for grid in sorted(fitting, key=math.prod)[-_TRIES:]
    )
    candidates = (layout for layout in chain(readings, later) if layout is not None)
    layout = next((candidate for candidate in candidates if proof.is_proven(tokens, candidate, least=_ALIGNED)), None)
    if layout is not None and layout.interleaved:
        elsewhere = [i for i in range(1, len(images)) if not proof.is_aligned(tokens, layout, least=_ALIGNED, image=i)]
        if elsewhere:
            raise MethodError(
                f"the patches of image {elsewhere[0]} stand elsewhere among the tokens than those of image 0 (padding on the "
                "left?); explain the images one by one"
            )
    return layout


def _on_another_grid(readings: Sequence[Layout], layout: Layout) -> bool:
    """Return whether tokens have a grid other than the patches'. The same grid among words, as in a language model, is not."""
    return bool(readings) and all(reading.grid != layout.grid for reading in readings)


def _readings(count: int, images: Tensor, grids: Sequence[Grid]) -> list[Layout]:
    """List the layouts of so many tokens as patches after a few other tokens."""
    readings = token_layouts((len(images), count, 0), len(images), tuple(images.shape[2:]), grids)
    return [reading for reading in readings if reading.kind == "tokens"]
