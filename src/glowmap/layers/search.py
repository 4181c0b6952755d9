"""Find the layer worth looking at by evidence: where the score's gradient reaches, and where nothing of it goes past.

The rules, in the order in which they are tried:

- a classifier: the last output at whose places there is a gradient and through which *all* of the score's gradient by the
  picture goes; where a normalisation after it carries the whole gradient of its patches, that normalisation (a transformer
  that reads out a class token: the input of the last block's attention);
- a dense model or a detector: the encoder's end, that is, on the coarsest grid that holds a good part of the parameters, the
  output with most channels through which all passes that goes through this grid;
- else the last output with a gradient at most of its places.

Any output but a convolution's must prove its layout: its cells must depend on the picture where the layout has them.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

from torch import Tensor, nn

from glowmap.errors import LayerError
from glowmap.layers.align import (
    LOOSELY,
    aligned,
    carries,
    coverage,
    gradients,
    offset,
    proven,
    scattered,
    stands,
    unshifted,
)
from glowmap.layers.choice import Choice, LayerScore, no_gradient, no_grid
from glowmap.layers.layout import Grid, Layout, is_made, is_plain, patches_among, read_layout, token_layouts, witness
from glowmap.layers.trace import Trace, TracedOutput, traced
from glowmap.shapes import crossed

_COVERED = 0.5  # the share of places that must have a gradient
_COVERED_BY_FEW = 0.02  # the same where the model speaks of places, of which a score may mean a few (boxes)
_LATE = 0.5  # of the outputs must have run before one that counts as the last that all evidence goes through
_HOLDS = 0.15  # the share of parameters from which on a grid is one of the encoder's own
_BEGINS = 0.4  # of a grid's outputs and parameters, in their order, are its beginning
_MIXED = 8  # times as many mixed sequences as grids: a model that is made of them
_TRIES = 16
_ALIKE = 4  # outputs of one shape that are tried before the first of that shape
_SHOWN = 4


@dataclass
class _Candidate:
    put: TracedOutput
    layout: Layout
    sure: bool  # its layout needs no proof
    gradient: Tensor
    coverage: float
    why_not: str = ""
    checked: dict[str, bool] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        return self.layout.maps(self.put.tensor).shape[1]

    def choice(self, reason: str, *, certain: bool = True) -> Choice:
        return Choice(self.put.name, self.put.kind, self.channels, self.layout, self.coverage, reason, certain)


def find_layer(
    model: nn.Module,
    images: Tensor,
    call: Callable[[Tensor], Any],
    ask: Callable[[Any], LayerScore],
    *,
    blindly: bool = False,
    grids: Sequence[Grid] = (),
) -> Choice:
    """Find the layer worth looking at for images of this shape: one pass forward, and a few backward to prove the choice.

    ``call`` runs the (borrowed) model on images that need a gradient, ``ask`` makes a score of its output; ``grids`` are those
    that its tokens are known to have. Raises LayerError where there is none, with what was seen; ``blindly`` takes the last
    output with a grid where there are no gradients.
    """
    leaf = images.detach().clone().requires_grad_()
    with traced(model) as trace:
        output = call(leaf.clone())  # as the model may write into its input
    trace.grids += grids
    asked = ask(output)
    (whole,) = gradients(asked.score, [leaf])
    if whole is None or not whole.any():
        if blindly:
            return _last_grid(model, leaf, trace)
        raise LayerError(no_gradient(model, whole is not None))
    return _Search(model, leaf, trace, asked, whole, sure=bool(grids)).choice()


def _last_grid(model: nn.Module, images: Tensor, trace: Trace) -> Choice:
    reason = "the last with a grid, as there is no gradient to go by"
    for put in reversed(trace.outputs):
        with suppress(LayerError):
            layout = read_layout(put.tensor.shape, put.name, witness(model, put.names[0]), images, trace.grids)
            if not (put.is_parameter_free or put.is_bare_linear):
                channels = layout.maps(put.tensor).shape[1]
                return Choice(put.name, put.kind, channels, layout, math.nan, reason, certain=False)
    raise LayerError(no_grid(model, []))


class _Search:
    def __init__(
        self, model: nn.Module, images: Tensor, trace: Trace, asked: LayerScore, whole: Tensor, *, sure: bool = False
    ) -> None:
        self.model, self.images, self.trace, self.asked, self.whole = model, images, trace, asked, whole
        self._sure = sure  # its family says which grid its tokens have
        self._before: dict[tuple[Layout, tuple[int, ...]], bool] = {}
        puts = [put for put in trace.outputs if put.tensor.requires_grad]
        slopes = gradients(asked.score, [put.tensor for put in puts])
        reached = [(put, slope) for put, slope in zip(puts, slopes, strict=True) if slope is not None]
        found = [self._candidate(model, put, slope) for put, slope in reached]
        self.candidates = [one for one in found if one is not None]
        self._held_by_all = sum(map(self._held, self._stretches()))  # also by the towers of a head
        self.candidates = self._of_all_parts()

    def _of_all_parts(self) -> list[_Candidate]:
        """Leave out what a part of the score does not depend on: the towers of a head."""
        left = self.candidates
        for part in self.asked.parts:
            slopes = gradients(part, [one.put.tensor for one in left])
            used = [one for one, slope in zip(left, slopes, strict=True) if slope is not None and slope.any()]
            left = used or left
        return left

    def _candidate(self, model: nn.Module, put: TracedOutput, slope: Tensor) -> _Candidate | None:
        shape, pixels = put.tensor.shape, tuple(self.images.shape[2:])
        try:
            layout: Layout | None = read_layout(
                shape, put.name, witness(model, put.names[0]), self.images, self.trace.grids
            )
        except LayerError:
            layout = patches_among(shape, self.images, self.trace.grids)
        if layout is None:
            return None
        if layout.before > 0 and not self._stands_before(put, layout):
            layout = patches_among(shape, self.images, self.trace.grids)
        if layout is None:
            return None
        if layout.before < 0:
            return _Candidate(put, layout, False, slope, 0.0)
        if not layout.of_tokens and not is_made(layout.grid, self.trace.grids):
            return None  # attention's queries x keys, windows x channels: two axes that are no rows and columns
        return _Candidate(put, layout, is_plain(layout, shape, pixels), slope, coverage(slope, layout))

    def _stands_before(self, put: TracedOutput, layout: Layout) -> bool:
        """Prove once for each shape that the tokens beside the patches stand before them, where the patches still look nearby."""
        key = (layout, tuple(put.tensor.shape[:-1]))
        if key not in self._before:
            self._before[key] = stands(put.tensor, layout, self.images)
        return self._before[key]

    @cached_property
    def _pool(self) -> list[_Candidate]:
        """The candidates that count: tokens with a grid somewhere among them only where there is hardly anything else.

        A language model behind the vision tower is left out so; a transformer that takes patches and text in one sequence is not.
        """
        plain = [one for one in self.candidates if one.layout.before >= 0]
        if self._sure and plain:
            return plain
        return plain if _MIXED * len(plain) >= len(self.candidates) else self.candidates

    def choice(self) -> Choice:
        cut, unproven, end, covered = self._last_cut, self._last_cut_unproven, self._encoder_end, self._last_covered
        part = self._last_part
        rules = (cut, unproven, covered, part, end)
        if self.asked.places or self.asked.boxes:
            rules = (end, cut, unproven, covered, part) if self.asked.places else (cut, end, unproven, covered, part)
        for rule in rules:
            found = rule()
            if found is not None:
                best, reason = found
                certain = rule in (self._encoder_end, self._last_cut)
                if best.sure and aligned(best.put.tensor, best.layout, self.images, least=LOOSELY) < LOOSELY:
                    certain = False
                    reason += (
                        ", but its cells look elsewhere in the picture: does the model crop, flip or warp its input?"
                    )
                return replace(best.choice(reason, certain=certain), runners_up=self._runners_up(best))
        raise LayerError(no_grid(self.model, [f"{one.put.name}: {one.why_not}" for one in self.candidates[-3:]]))

    def _runners_up(self, best: _Candidate) -> tuple[Choice, ...]:
        """List what came after and was ruled out, and the last of each stretch on one grid that came before."""
        after = [one for one in reversed(self.candidates) if one.put.order > best.put.order and one.layout.before >= 0]
        for one in after[:_SHOWN]:
            self._fits(one)  # which notes why not
        ruled_out = [one.choice(one.why_not or "later, and with less to tell") for one in after[:_SHOWN]]
        before: list[Choice] = []
        for stretch in reversed(self._stretches()):
            late = stretch[len(stretch) // 2 :]
            earlier = [one for one in late if one.put.order < best.put.order and self._fits(one)]
            whole = [one for one in earlier if not any(_inside(one, other) for other in earlier)]
            whole.sort(key=lambda one: (-one.put.name.count("."), one.put.order))
            before += [one.choice(one.why_not or "earlier") for one in whole[-1:]]
        return (*ruled_out, *before[:_SHOWN])

    # -- what rules a candidate out --------------------------------------------------------------------------------

    def _fits(self, one: _Candidate) -> bool:
        """Rule out what has no gradient at its places, makes nothing, or is half of a step; and note why."""
        if "fits" not in one.checked:
            few = 0.0 if self.asked.own else _COVERED_BY_FEW
            one.why_not = self._why_not(one, few if self.asked.places or self.asked.boxes else _COVERED)
            one.checked["fits"] = not one.why_not
        return one.checked["fits"]

    def _why_not(self, one: _Candidate, covered: float) -> str:
        if one.put.is_parameter_free or any(one.put.rearranged_from is other.put.tensor for other in self.candidates):
            return "pooling, resizing or another order of what came in"
        if one.put.is_bare_linear:
            return "the bare product of a linear layer"
        if one.layout.before < 0 and not self._placed(one):
            return "tokens of no grid"
        if not one.coverage:
            return "the score has no gradient there"
        if one.coverage < covered:
            return "the score has a gradient at few of its places"
        cells = math.prod(one.layout.grid)
        if self.asked.parts and self.asked.boxes and cells > 1 and one.coverage * cells < 1.5:
            return "the score has a gradient at a single place, of which there is no map"  # as before a head of single cells
        if one.channels == self.asked.classes and not self.trace.has_parameters_after(one.put):
            return "the class scores themselves, place by place"
        return ""

    def _placed(self, one: _Candidate) -> bool:
        layout = offset(one.put.tensor, one.layout, self.images)
        if layout is None or not unshifted(one.put.tensor, layout, self.images):
            return False
        one.layout, one.coverage = layout, coverage(one.gradient, layout)
        return True

    def _proven(self, one: _Candidate) -> bool:
        """Prove a layout, or find another that is."""
        if one.sure:
            return True
        if "proven" not in one.checked:
            one.checked["proven"] = any(self._reads(one, layout) for layout in self._readings(one))
            if not one.checked["proven"]:
                one.why_not = "its cells do not look where a grid would have them"
        return one.checked["proven"]

    def _reads(self, one: _Candidate, layout: Layout) -> bool:
        if not proven(one.put.tensor, layout, self.images):
            return False
        one.layout, one.coverage = layout, coverage(one.gradient, layout)
        return True

    def _readings(self, one: _Candidate) -> Sequence[Layout]:
        shape, pixels = one.put.tensor.shape, tuple(self.images.shape[2:])
        others = token_layouts(shape, len(self.images), pixels, self.trace.grids)
        if len(shape) == self.images.ndim:
            others += [Layout("channels first", tuple(shape[2:])), Layout("channels last", tuple(shape[1:-1]))]
        return list(dict.fromkeys([one.layout, *others]))[:4]

    # -- the rules -------------------------------------------------------------------------------------------------

    def _is_cut(self, one: _Candidate) -> bool:
        """Tell whether all of the score's gradient by the images comes through an output."""
        if "cut" not in one.checked:
            one.checked["cut"] = carries(one.put.tensor, one.gradient, self.images, self.whole)
        return one.checked["cut"]

    @property
    def _latter(self) -> list[_Candidate]:
        """What ran late enough to be the last that all evidence goes through, from the end.

        Where the score has parts, as a detection has a class and a box, it is what all of them come through.
        """
        # of heads that run at every level of a pyramid, one level's alone has to do with it
        return self._pool[0 if self.asked.parts else int(_LATE * len(self._pool)) :][::-1]

    def _last_cut(self) -> tuple[_Candidate, str] | None:
        for one in islice(filter(self._fits, self._latter), _TRIES):
            if not self._is_cut(one):
                one.why_not = "some of the evidence goes past it"
            else:
                after = self._normalised(one)
                if after is not None or self._proven(one):
                    return after or (one, "the last that all evidence goes through")
        return None

    def _last_cut_unproven(self) -> tuple[_Candidate, str] | None:
        """Take a cut whose grid is known and whose cells look everywhere, as those of global attention without a residual do."""
        reason = "the last that all evidence goes through, but its cells look everywhere, so its grid is not proven"
        tokens = [one for one in self._latter if one.layout.kind == "tokens" and one.layout.before == 0]
        cut = next(filter(self._is_cut, islice(filter(self._fits, tokens), _TRIES)), None)
        return (cut, reason) if cut is not None and scattered(cut.put.tensor, cut.layout, self.images) else None

    def _last_part(self) -> tuple[_Candidate, str] | None:
        """Take a cut of which the model reads a part alone, as a head of single cells does."""
        read = (one for one in reversed(self._pool) if one.coverage and not self._why_not(one, 0.0))
        for one in islice(read, _TRIES):
            if self._is_cut(one) and self._proven(one):
                return one, f"all evidence goes through it, but through {one.coverage:.0%} of its places alone"
        return None

    def _normalised(self, cut: _Candidate) -> tuple[_Candidate, str] | None:
        """Find a normalisation after the cut through which all goes that its patches say: their class token aside."""
        after = [one for one in self.candidates if one.put.order > cut.put.order]
        for one in after:
            vectors = all(parameter.ndim == 1 for parameter in one.put.modules[0].parameters())
            same = one.layout == cut.layout and one.put.tensor.shape == cut.put.tensor.shape
            if not (vectors and same and one.coverage >= _COVERED and not one.put.is_parameter_free):
                continue
            if carries(one.put.tensor, one.gradient, cut.put.tensor, cut.gradient, cut.layout) and self._proven(one):
                return one, "the last that all evidence of the patches goes through"
        return None

    def _encoder_end(self) -> tuple[_Candidate, str] | None:
        stretches = self._stretches()
        own = [stretch for stretch in stretches if self._held(stretch) >= _HOLDS * self._held_by_all]
        own.sort(key=lambda stretch: (math.prod(stretch[0].layout.grid), -self._held(stretch)))
        for stretch in own:
            for one in sorted(self._late(stretch), key=lambda one: (-one.channels, *_outermost(one, stretch))):
                if self._ends(one, stretch[0]):
                    reason = f"the encoder's end, which everything on its grid of {crossed(one.layout.grid)} passes"
                    return self._around(one, stretch), reason
            if stretch is max(own, key=self._held):  # finer ones are a decoder's
                return self._trunk_end(stretch)
        return None

    def _trunk_end(self, stretch: Sequence[_Candidate]) -> tuple[_Candidate, str] | None:
        """Take the end of the longest way on one grid, of which several places are read (a transformer below a decoder)."""
        late = self._late(stretch)
        widths = [one.channels for one in late]
        width = max(widths, key=lambda width: (widths.count(width), width))
        for one in sorted((one for one in late if one.channels == width), key=lambda one: _outermost(one, stretch)):
            if self._fits(one) and self._proven(one):
                return one, "the end of the longest way on one grid, of which the model reads several places"
        return None

    def _stretches(self) -> list[list[_Candidate]]:
        """Cut the outputs, in their order, where the grid changes: what a decoder does on a grid is not the encoder's."""
        stretches: list[list[_Candidate]] = []
        for one in self.candidates:
            if one.layout.before < 0 or not one.coverage:
                continue
            if stretches and stretches[-1][0].layout.grid == one.layout.grid:
                stretches[-1].append(one)
            else:
                stretches.append([one])
        return stretches

    def _late(self, stretch: Sequence[_Candidate]) -> Sequence[_Candidate]:
        """Leave out what a grid begins with, which carries all of it and says little yet: by outputs and by parameters."""
        held = list(accumulate(self.trace.parameters[one.put.order] for one in stretch))
        shares = [(2 * i / len(held) + so_far / max(held[-1], 1)) / 3 for i, so_far in enumerate(held)]
        first = next((i for i, share in enumerate(shares) if share >= _BEGINS), 0)
        return stretch[first:]

    def _held(self, stretch: Sequence[_Candidate]) -> int:
        return sum(self.trace.parameters[one.put.order] for one in stretch)

    def _ends(self, one: _Candidate, source: _Candidate) -> bool:
        """Tell whether all that goes through a grid, from its source on, goes through this output."""
        if "ends" not in one.checked:
            passes = one is source or carries(one.put.tensor, one.gradient, source.put.tensor, source.gradient)
            one.checked["ends"] = passes and self._fits(one) and self._proven(one)
        return one.checked["ends"]

    def _around(self, one: _Candidate, level: Sequence[_Candidate]) -> _Candidate:
        """Find the outermost module around this one that ends the grid too: the stage, not the inside of its block."""
        around = [each for each in level if _inside(one, each)]
        around.sort(key=lambda each: each.put.name.count("."))
        return next((each for each in around if self._ends(each, level[0])), one)

    def _last_covered(self) -> tuple[_Candidate, str] | None:
        failed: dict[tuple[int, ...], int] = {}
        for one in reversed(self._pool):
            shape = tuple(one.put.tensor.shape)
            first = next(each for each in self._pool if each.put.tensor.shape == one.put.tensor.shape)
            if (failed.get(shape, 0) >= _ALIKE and one is not first) or not self._fits(one):
                continue  # where several of a kind cannot be proven, the first of them is the likeliest to be
            if self._proven(one):
                return one, "the last with a gradient at its places, though some evidence goes past it"
            failed[shape] = failed.get(shape, 0) + 1
        return None


def _inside(one: _Candidate, other: _Candidate) -> bool:
    return one.put.name.startswith(f"{other.put.name.partition('#')[0]}.")


def _outermost(one: _Candidate, stretch: Sequence[_Candidate]) -> tuple[int, int, int]:
    """Order by the part of the model, the first before its decoder; then the outermost module; then the last."""
    parts = list(dict.fromkeys(each.put.name.partition(".")[0] for each in stretch))
    return parts.index(one.put.name.partition(".")[0]), one.put.name.count("."), -one.put.order
