"""The outputs of a traced pass that may be explained: what rules each of them out, and where their cells look."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from glowmap.errors import LayerError
from glowmap.layers.align import LayoutProof, coverage, gradients, is_bottleneck
from glowmap.layers.choice import Choice, LayerScore
from glowmap.layers.layout import (
    Layout,
    interleaved_candidate,
    is_made,
    is_plain,
    layout_witness,
    read_layout,
    token_layouts,
)
from glowmap.layers.trace import Trace, TracedOutput

_COVERED = 0.5  # the share of cells that must have a gradient
_COVERED_BY_FEW = 0.02  # the same where the score is about places, which may be a few (boxes)
_READINGS = 4  # layouts of one output that are tested


@dataclass(eq=False)
class Candidate:
    """An output that can be read as a grid, and the score's gradient with respect to it."""

    output: TracedOutput
    layout: Layout
    is_certain: bool  # its layout needs no proof
    gradient: Tensor
    coverage: float  # the share of its cells with a gradient
    why_not: str = ""  # the reason against it
    checked: dict[str, bool] = field(default_factory=dict)  # results of the tests below, by name

    @property
    def order(self) -> int:
        """The place of its output in the order of the pass."""
        return self.output.order

    @property
    def tensor(self) -> Tensor:
        """Its output."""
        return self.output.tensor

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.output.name

    @property
    def channels(self) -> int:
        """How many channels its maps have."""
        return self.layout.maps(self.tensor).shape[1]

    @property
    def has_grid(self) -> bool:
        """False for tokens of which it is not known yet where the patches are among them."""
        return self.layout.prefix_tokens >= 0

    def choice(self, reason: str, *, certain: bool = True) -> Choice:
        """Return it as the layer to explain."""
        kind = self.output.kind
        return Choice(self.name, kind, self.channels, self.layout, self.coverage, reason, certain)

    def is_inside(self, other: "Candidate") -> bool:
        """Return whether its module is a part of the other's."""
        return self.name.startswith(f"{other.name.partition('#')[0]}.")


class Candidates:
    """The candidates of a traced pass in their order, and the tests that they must pass.

    ``images`` are the leaf of the graph and ``image_gradient`` the score's gradient there. ``knows_grid`` says that the model's
    family gave the grid of its tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        score: LayerScore,
        proof: LayoutProof,
        image_gradient: Tensor,
        *,
        knows_grid: bool,
    ) -> None:
        self.model, self.trace, self.score, self.proof = model, trace, score, proof
        self.image_gradient, self.knows_grid = image_gradient, knows_grid
        self._proven_prefixes: dict[tuple[Layout, tuple[int, ...]], bool] = {}
        outputs = [output for output in trace.outputs if output.tensor.requires_grad]
        slopes = gradients(score.score, [output.tensor for output in outputs])
        reached = [(output, slope) for output, slope in zip(outputs, slopes, strict=True) if slope is not None]
        candidates = [self._candidate(output, slope) for output, slope in reached]
        self.all = [candidate for candidate in candidates if candidate is not None]
        # of the towers of a head as well
        self.total_parameters = sum(map(self.parameters, self.stages()))
        self.all = self._reached_by_all_parts()

    def _reached_by_all_parts(self) -> list[Candidate]:
        """Drop what a part of the score does not depend on: the towers of a head."""
        left = self.all
        for part in self.score.parts:
            slopes = gradients(part, [candidate.tensor for candidate in left])
            pairs = zip(left, slopes, strict=True)
            left = [candidate for candidate, slope in pairs if slope is not None and slope.any()] or left
        return left

    def _candidate(self, output: TracedOutput, slope: Tensor) -> Candidate | None:
        shape, grids = output.tensor.shape, self.trace.grids
        layout: Layout | None
        try:
            layout = read_layout(
                shape, output.name, layout_witness(self.model, output.names[0]), self.proof.shape, grids
            )
        except LayerError:
            layout = interleaved_candidate(shape, self.proof.shape, grids)
        if layout is not None and layout.prefix_tokens > 0 and not self._has_proven_prefix(output, layout):
            layout = interleaved_candidate(shape, self.proof.shape, grids)
        if layout is None:
            return None
        if layout.prefix_tokens < 0:
            return Candidate(output, layout, False, slope, 0.0)
        if not layout.is_of_tokens and not is_made(layout.grid, grids):
            return None  # attention's queries x keys, windows x channels: two axes that are no rows and columns
        certain = is_plain(layout, shape, self.proof.pixels)
        return Candidate(output, layout, certain, slope, coverage(slope, layout))

    def _has_proven_prefix(self, output: TracedOutput, layout: Layout) -> bool:
        """Prove once for each shape that the other tokens stand before the patches, where the patches still look nearby."""
        key = (layout, tuple(output.tensor.shape[:-1]))
        if key not in self._proven_prefixes:
            self._proven_prefixes[key] = self.proof.is_proven(output.tensor, layout)
        return self._proven_prefixes[key]

    def fits(self, candidate: Candidate) -> bool:
        """Return whether it has a gradient at its cells, computes something, and is a whole step; else note the reason."""
        if "fits" not in candidate.checked:
            few = 0.0 if self.score.is_of_target else _COVERED_BY_FEW
            least = few if self.score.is_dense or self.score.has_boxes else _COVERED
            candidate.why_not = self.reason_against(candidate, least)
            candidate.checked["fits"] = not candidate.why_not
        return candidate.checked["fits"]

    def reason_against(self, candidate: Candidate, least_coverage: float) -> str:
        """Return why a candidate is ruled out; an empty string where it is not."""
        output = candidate.output
        if output.is_parameter_free or any(output.rearranged_from is other.tensor for other in self.all):
            return "pooling, resizing or another order of what came in"
        if output.is_bare_linear:
            return "the bare product of a linear layer"
        if not candidate.has_grid and not self._find_patches(candidate):
            return "tokens of no grid"
        if not candidate.coverage:
            return "the score has no gradient there"
        if candidate.coverage < least_coverage:
            return "the score has a gradient at few of its places"
        cells = math.prod(candidate.layout.grid)
        # as before a head of single cells
        if self.score.parts and self.score.has_boxes and cells > 1 and candidate.coverage * cells < 1.5:
            return "the score has a gradient at a single place, of which there is no map"
        if candidate.channels == self.score.classes and not self.trace.has_parameters_after(output):
            return "the class scores themselves, place by place"
        return ""

    def _find_patches(self, candidate: Candidate) -> bool:
        """Find where among its tokens the patches are."""
        layout = self.proof.token_offset(candidate.tensor, candidate.layout)
        if layout is None or not self.proof.is_unshifted(candidate.tensor, layout):
            return False
        candidate.layout, candidate.coverage = layout, coverage(candidate.gradient, layout)
        return True

    def is_proven(self, candidate: Candidate) -> bool:
        """Return whether its cells look where its layout puts them, or take another layout that holds."""
        if candidate.is_certain:
            return True
        if "proven" not in candidate.checked:
            candidate.checked["proven"] = any(self._takes(candidate, layout) for layout in self._layouts(candidate))
            if not candidate.checked["proven"]:
                candidate.why_not = "its cells do not look where a grid would have them"
        return candidate.checked["proven"]

    def _takes(self, candidate: Candidate, layout: Layout) -> bool:
        if not self.proof.is_aligned(candidate.tensor, layout):
            return False
        candidate.layout, candidate.coverage = layout, coverage(candidate.gradient, layout)
        return True

    def _layouts(self, candidate: Candidate) -> Sequence[Layout]:
        shape = candidate.tensor.shape
        others = token_layouts(shape, len(self.proof.images), self.proof.pixels, self.trace.grids)
        if len(shape) == self.proof.images.ndim:
            others += [Layout("channels first", tuple(shape[2:])), Layout("channels last", tuple(shape[1:-1]))]
        return list(dict.fromkeys([candidate.layout, *others]))[:_READINGS]

    def is_image_bottleneck(self, candidate: Candidate) -> bool:
        """Return whether all of the score's gradient with respect to the images comes through it."""
        if "bottleneck" not in candidate.checked:
            candidate.checked["bottleneck"] = is_bottleneck(
                candidate.tensor, candidate.gradient, self.proof.images, self.image_gradient
            )
        return candidate.checked["bottleneck"]

    def ends_stage(self, candidate: Candidate, first: Candidate) -> bool:
        """Return whether all that goes through a stage, from its first output on, goes through this one."""
        if "ends stage" not in candidate.checked:
            passes = candidate is first or is_bottleneck(
                candidate.tensor, candidate.gradient, first.tensor, first.gradient
            )
            candidate.checked["ends stage"] = passes and self.fits(candidate) and self.is_proven(candidate)
        return candidate.checked["ends stage"]

    def stages(self) -> list[list[Candidate]]:
        """Cut the candidates where the grid changes: what a decoder computes on a grid is not the encoder's."""
        stages: list[list[Candidate]] = []
        for candidate in self.all:
            if not candidate.has_grid or not candidate.coverage:
                continue
            if stages and stages[-1][0].layout.grid == candidate.layout.grid:
                stages[-1].append(candidate)
            else:
                stages.append([candidate])
        return stages

    def parameters(self, stage: Sequence[Candidate]) -> int:
        """Return how many parameters the modules of a stage own."""
        return sum(self.trace.parameters[candidate.order] for candidate in stage)
