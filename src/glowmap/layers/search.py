"""Search for the layer to explain by evidence: where the score's gradient reaches, and where none of it goes past.

The rules, in the order in which they are tried:

- a classifier: the last output with a gradient at its cells through which *all* of the score's gradient with respect to the
  image goes; where a normalisation after it carries the whole gradient of its patches, that normalisation (of a transformer that
  reads a class token: the input of the last block's attention);
- a dense model or a detector: the end of the encoder, which is, on the coarsest grid that holds a good part of the parameters,
  the output with most channels through which everything on this grid goes;
- else the last output with a gradient at most of its cells.

Any output but a convolution's must prove its layout: its cells must depend on the image where the layout puts them.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, islice
from typing import Any, TypeAlias

from torch import Tensor, nn

from glowmap.errors import LayerError
from glowmap.layers.align import LOOSELY, LayoutProof, gradients, is_bottleneck
from glowmap.layers.candidates import Candidate, Candidates
from glowmap.layers.choice import Choice, LayerScore, no_gradient, no_grid
from glowmap.layers.layout import Grid, layout_witness, read_layout
from glowmap.layers.trace import Trace, traced
from glowmap.shapes import crossed

_COVERED = 0.5  # the share of cells that must have a gradient
_LATE = 0.5  # the share of outputs that must have run before the last one that all evidence goes through
_HOLDS = 0.15  # the share of parameters from which on a grid is one of the encoder's
_BEGINNING = 0.4  # the share of a stage's outputs and parameters, in their order, that is its beginning
_MIXED = 8  # so many times more interleaved sequences than grids: a model that is made of them
_TRIES = 16
_ALIKE = 4  # outputs of one shape that are tried before the first of that shape
_SHOWN = 4

_Result: TypeAlias = tuple[Candidate, str]  # and the reason to take it


def find_layer(
    model: nn.Module,
    images: Tensor,
    call: Callable[[Tensor], Any],
    read_score: Callable[[Any], LayerScore],
    *,
    without_gradient: bool = False,
    grids: Sequence[Grid] = (),
) -> Choice:
    """Find the layer to explain for images of this shape: one forward pass, and a few backward passes to prove the choice.

    ``call`` runs the borrowed model on images that require a gradient, ``read_score`` makes a score of its output; ``grids`` are
    those that the family knows of its tokens. Raises LayerError where there is none, with the reasons; ``without_gradient`` takes
    the last output with a grid where the score has no gradient.
    """
    leaf = images.detach().clone().requires_grad_()
    with traced(model) as trace:
        raw = call(leaf.clone())  # as the model may write into its input
    trace.grids += grids
    score = read_score(raw)
    (image_gradient,) = gradients(score.score, [leaf])
    proof = LayoutProof(leaf, score.canvas)
    if image_gradient is None or not image_gradient.any():
        if without_gradient:
            return _last_grid(model, proof, trace)
        raise LayerError(no_gradient(model, is_connected=image_gradient is not None))
    candidates = Candidates(model, trace, score, proof, image_gradient, knows_grid=bool(grids))
    return _Search(candidates).choice()


def _last_grid(model: nn.Module, proof: LayoutProof, trace: Trace) -> Choice:
    reason = "the last with a grid, as there is no gradient to go by"
    for output in reversed(trace.outputs):
        with suppress(LayerError):
            witness = layout_witness(model, output.names[0])
            layout = read_layout(output.tensor.shape, output.name, witness, proof.shape, trace.grids)
            if not (output.is_parameter_free or output.is_bare_linear):
                channels = layout.maps(output.tensor).shape[1]
                return Choice(output.name, output.kind, channels, layout, math.nan, reason, certain=False)
    raise LayerError(no_grid(model, []))


class _Search:
    """The rules by which one of the candidates is chosen."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.score, self.proof = candidates.score, candidates.proof

    def choice(self) -> Choice:
        """Return the layer of the first rule that finds one, with the runners-up. Raises LayerError where none does."""
        bottleneck, covered, end = self._last_bottleneck, self._last_covered, self._encoder_end
        rules = [bottleneck, self._last_global_bottleneck, covered, self._partly_read_bottleneck, end]
        if self.score.is_dense or self.score.has_boxes:
            rules.remove(end)
            rules.insert(0 if self.score.is_dense else 1, end)
        for rule in rules:
            result = rule()
            if result is None:
                continue
            best, reason = result
            is_certain = rule in (end, bottleneck)
            if best.is_certain and self.proof.alignment(best.tensor, best.layout, least=LOOSELY) < LOOSELY:
                is_certain = False
                reason += ", but its cells look elsewhere in the picture: does the model crop, flip or warp its input?"
            return replace(best.choice(reason, certain=is_certain), runners_up=self._runners_up(best))
        last = [f"{candidate.name}: {candidate.why_not}" for candidate in self.candidates.all[-3:]]
        raise LayerError(no_grid(self.candidates.model, last))

    def _runners_up(self, best: Candidate) -> tuple[Choice, ...]:
        """List what came after the best and was ruled out, and the last of each stage before it."""
        fits, after = self.candidates.fits, self._after(best)[::-1]
        after = [candidate for candidate in after if candidate.has_grid][:_SHOWN]
        for candidate in after:
            fits(candidate)  # which notes why not
        ruled_out = [candidate.choice(candidate.why_not or "later, and with less to tell") for candidate in after]
        before: list[Choice] = []
        for stage in reversed(self.candidates.stages()):
            late = stage[len(stage) // 2 :]
            earlier = [candidate for candidate in late if candidate.order < best.order and fits(candidate)]
            whole = [candidate for candidate in earlier if not any(map(candidate.is_inside, earlier))]
            whole.sort(key=lambda candidate: (-candidate.name.count("."), candidate.order))
            before += [candidate.choice(candidate.why_not or "earlier") for candidate in whole[-1:]]
        return (*ruled_out, *before[:_SHOWN])

    def _after(self, candidate: Candidate) -> list[Candidate]:
        return [later for later in self.candidates.all if later.order > candidate.order]

    @cached_property
    def _pool(self) -> list[Candidate]:
        """The candidates that count: interleaved tokens only where there is hardly anything else.

        So a language model behind the vision tower is left out; a transformer that takes patches and text in one sequence is not.
        """
        with_grid = [candidate for candidate in self.candidates.all if candidate.has_grid]
        if self.candidates.knows_grid and with_grid:
            return with_grid
        return with_grid if _MIXED * len(with_grid) >= len(self.candidates.all) else self.candidates.all

    @property
    def _late(self) -> list[Candidate]:
        """What ran late enough to be the last that all evidence goes through, from the end.

        Where the score has parts, as a detection has a class and a box, it is what all of them come through: of heads that run
        at every level of a pyramid, only those of one level have to do with it.
        """
        return self._pool[0 if self.score.parts else int(_LATE * len(self._pool)) :][::-1]

    def _last_bottleneck(self) -> _Result | None:
        """Find the last output that all evidence goes through, or a normalisation after it."""
        for candidate in islice(filter(self.candidates.fits, self._late), _TRIES):
            if not self.candidates.is_image_bottleneck(candidate):
                candidate.why_not = "some of the evidence goes past it"
                continue
            normalised = self._normalised(candidate)
            if normalised is not None or self.candidates.is_proven(candidate):
                return normalised or (candidate, "the last that all evidence goes through")
        return None

    def _last_global_bottleneck(self) -> _Result | None:
        """Find a bottleneck of a known grid whose cells look everywhere, as in global attention without a residual."""
        reason = "the last that all evidence goes through, but its cells look everywhere, so its grid is not proven"
        tokens = [
            candidate
            for candidate in self._late
            if candidate.layout.kind == "tokens" and candidate.layout.prefix_tokens == 0
        ]
        fitting = islice(filter(self.candidates.fits, tokens), _TRIES)
        bottleneck = next(filter(self.candidates.is_image_bottleneck, fitting), None)
        if bottleneck is None or not self.proof.is_global(bottleneck.tensor, bottleneck.layout):
            return None
        return bottleneck, reason

    def _partly_read_bottleneck(self) -> _Result | None:
        """Find a bottleneck of which the model reads only some cells, as a head of single cells does."""
        read = (
            candidate
            for candidate in reversed(self._pool)
            if candidate.coverage and not self.candidates.reason_against(candidate, 0.0)
        )
        for candidate in islice(read, _TRIES):
            if self.candidates.is_image_bottleneck(candidate) and self.candidates.is_proven(candidate):
                return candidate, (
                    f"all evidence goes through it, but through {candidate.coverage:.0%} of its places alone"
                )
        return None

    def _normalised(self, bottleneck: Candidate) -> _Result | None:
        """Find a normalisation after the bottleneck through which all evidence of its patches goes, class token aside."""
        for candidate in self._after(bottleneck):
            vectors = all(parameter.ndim == 1 for parameter in candidate.output.modules[0].parameters())
            alike = candidate.layout == bottleneck.layout and candidate.tensor.shape == bottleneck.tensor.shape
            if not (vectors and alike and candidate.coverage >= _COVERED and not candidate.output.is_parameter_free):
                continue
            source, layout = bottleneck.tensor, bottleneck.layout
            carries = is_bottleneck(candidate.tensor, candidate.gradient, source, bottleneck.gradient, layout)
            if carries and self.candidates.is_proven(candidate):
                return candidate, "the last that all evidence of the patches goes through"
        return None

    def _encoder_end(self) -> _Result | None:
        """Find the end of the encoder: on its coarsest grid, the widest output through which everything on it goes."""
        parameters = self.candidates.parameters
        least = _HOLDS * self.candidates.total_parameters
        stages = [stage for stage in self.candidates.stages() if parameters(stage) >= least]
        stages.sort(key=lambda stage: (math.prod(stage[0].layout.grid), -parameters(stage)))
        for stage in stages:
            widest_first = sorted(
                self._without_beginning(stage), key=lambda candidate: (-candidate.channels, *_rank(candidate, stage))
            )
            for candidate in widest_first:
                if self.candidates.ends_stage(candidate, stage[0]):
                    grid = crossed(candidate.layout.grid)
                    reason = f"the encoder's end, which everything on its grid of {grid} passes"
                    return self._outermost_end(candidate, stage), reason
            if stage is max(stages, key=parameters):  # finer ones are a decoder's
                return self._trunk_end(stage)
        return None

    def _trunk_end(self, stage: Sequence[Candidate]) -> _Result | None:
        """Find the end of the longest way on one grid, of which the decoder reads several outputs (a plain transformer)."""
        late = self._without_beginning(stage)
        widths = [candidate.channels for candidate in late]
        width = max(widths, key=lambda width: (widths.count(width), width))
        same_width = [candidate for candidate in late if candidate.channels == width]
        for candidate in sorted(same_width, key=lambda candidate: _rank(candidate, stage)):
            if self.candidates.fits(candidate) and self.candidates.is_proven(candidate):
                return candidate, "the end of the longest way on one grid, of which the model reads several places"
        return None

    def _without_beginning(self, stage: Sequence[Candidate]) -> Sequence[Candidate]:
        """Drop the first 40 % of a stage, by depth and parameters: everything passes there too, but little is computed yet."""
        parameters = list(accumulate(self.candidates.trace.parameters[candidate.order] for candidate in stage))
        count, total = len(parameters), max(parameters[-1], 1)
        shares = [(2 * depth / count + so_far / total) / 3 for depth, so_far in enumerate(parameters)]
        return stage[next((depth for depth, share in enumerate(shares) if share >= _BEGINNING), 0) :]

    def _outermost_end(self, candidate: Candidate, stage: Sequence[Candidate]) -> Candidate:
        """Return the outermost module around a candidate that ends the stage too: the stage itself, not its last block."""
        around = [other for other in stage if candidate.is_inside(other)]
        around.sort(key=lambda other: other.name.count("."))
        return next((other for other in around if self.candidates.ends_stage(other, stage[0])), candidate)

    def _last_covered(self) -> _Result | None:
        """Find the last output with a gradient at most of its cells."""
        failed: dict[tuple[int, ...], int] = {}
        for candidate in reversed(self._pool):
            shape = tuple(candidate.tensor.shape)
            first = next(other for other in self._pool if other.tensor.shape == candidate.tensor.shape)
            # where several of one shape cannot be proven, the first of them is the likeliest to be
            skipped = failed.get(shape, 0) >= _ALIKE and candidate is not first
            if skipped or not self.candidates.fits(candidate):
                continue
            if self.candidates.is_proven(candidate):
                return candidate, "the last with a gradient at its places, though some evidence goes past it"
            failed[shape] = failed.get(shape, 0) + 1
        return None


def _rank(candidate: Candidate, stage: Sequence[Candidate]) -> tuple[int, int, int]:
    """Rank by the part of the model, the first before its decoder; then outermost modules first; then the last first."""
    parts = list(dict.fromkeys(other.name.partition(".")[0] for other in stage))
    return parts.index(candidate.name.partition(".")[0]), candidate.name.count("."), -candidate.order
