"""The registry of evidence: what a method may need, how each kind is made, and what it costs.

A kind is one function, named as the parameter of the methods that need it::

    @evidence(cost="1 backward of the head", graph="layer")
    def gradients(scored: ScoredPass, layer: str) -> Maps: ...

What follows from the kinds a method needs (its cost, where its maps lie, what the forward pass must keep) is asked here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, Literal, TypeAlias, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

from glowmap.capture import repeat_image, same_output
from glowmap.cautions import Caution
from glowmap.errors import MethodError, Remedy, TargetError
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.methods import Method
from glowmap.registry import Registry
from glowmap.shapes import Scores
from glowmap.targets import Target

Grid: TypeAlias = Literal["", "layer", "input", "attention"]
Graph: TypeAlias = Literal["", "layer", "input"]
Mode: TypeAlias = Callable[[], TorchFunctionMode]
INPUT = "input"  # stands for the layer's name where maps lie on the input itself
ATTENTION = "attention"  # the same where they lie on the patches that attend


@dataclass(frozen=True)
class EvidenceKind:
    """A kind of evidence: the function that makes it, its cost, and what it needs of the forward pass."""

    name: str
    make: Callable[..., Any]
    cost: str  # beside the first forward pass
    grid: Grid  # what it lies on: evidence on the input or on attention needs no layer
    graph: Graph  # where the autograd graph of the forward pass must begin
    mode: Mode | None  # in which the forward pass must run
    reruns: Literal["", "head", "model"]  # what it runs again
    per_image: bool  # a function that the method calls, for one image: see methods.Query
    joins_layers: bool  # of all explained layers at once
    is_cheap: bool  # made for every model by the forward pass and one backward pass of the head


EVIDENCE: Registry[EvidenceKind] = Registry("kind of evidence", MethodError)
Make = TypeVar("Make", bound=Callable[..., Any])
Made = TypeVar("Made")


def evidence(
    *,
    cost: str = "",
    grid: Grid = "layer",
    graph: Graph = "",
    mode: Mode | None = None,
    reruns: Literal["", "head", "model"] = "",
    per_image: bool = False,
    joins_layers: bool = False,
    is_cheap: bool = False,
) -> Callable[[Make], Make]:
    """Register a function as a kind of evidence under its own name.

    The function gets the :class:`ScoredPass`, then the layer's name if ``grid`` is ``"layer"``, then, if it is ``per_image``,
    the image's number and the arguments of the method's query.
    """

    def register(make: Make) -> Make:
        name = make.__name__
        kind = EvidenceKind(name, make, cost, grid, graph, mode, reruns, per_image, joins_layers, is_cheap)
        EVIDENCE.register(name, kind)
        return make

    return register


@dataclass(frozen=True)
class Requirements:
    """What follows for a method from the kinds of evidence that it needs."""

    kinds: tuple[EvidenceKind, ...]

    @property
    def is_cheap(self) -> bool:
        """Whether one forward pass and one backward pass of the head make the evidence for every model."""
        return all(kind.is_cheap for kind in self.kinds)

    @property
    def costs(self) -> list[str]:
        """What the kinds cost beside the first forward pass, each cost once."""
        ordered = [kind.cost for kind in EVIDENCE.values() if kind in self.kinds]
        return list(dict.fromkeys(filter(None, ordered)))

    @cached_property
    def grid(self) -> Grid:
        """What the maps lie on: a layer's grid if any kind does, then the patches that attend, else the input."""
        grids = {kind.grid for kind in self.kinds}
        return "layer" if "layer" in grids else "attention" if "attention" in grids else "input"

    @cached_property
    def joins_layers(self) -> bool:
        """Whether one map is made of all layers."""
        return any(kind.joins_layers for kind in self.kinds)


@cache
def requirements(needs: tuple[str, ...]) -> Requirements:
    """Look up the kinds of evidence with these names. Raises MethodError for a name that is no kind."""
    for name in needs:
        if name not in EVIDENCE:
            raise MethodError(f"a method asks for {name!r}; a method may ask for {', '.join(EVIDENCE)}")
    return Requirements(tuple(EVIDENCE[name] for name in needs))


def method_cost(method: Method) -> str:
    """Say what a method costs, in passes of the model."""
    extra = [method.passes] if method.passes else requirements(method.needs).costs
    return " + ".join(["1 forward", *extra])


def is_cheap(method: Method) -> bool:
    """Whether one forward pass and one backward pass of the head serve it on every model, in a time that they dominate."""
    return not method.slow and requirements(method.needs).is_cheap


@cache
def map_places(needs: tuple[str, ...], layers: tuple[str, ...]) -> tuple[str, ...]:
    """Name what each map of a method with these needs lies on: a layer, all layers together, the input, or attending patches."""
    required = requirements(needs)
    if required.grid != "layer":
        return (required.grid,)
    return (", ".join(layers),) if required.joins_layers else layers


@dataclass(frozen=True)
class PassOptions:
    """What a forward pass must do so that the evidence for some methods can be made from it."""

    graph: bool = False  # record an autograd graph from the first layer on
    input_graph: bool = False  # record it from the input on
    mode: Mode | None = None  # run in this mode
    reruns: bool = False  # keep the input as it was: it is read, or the model runs again, afterwards
    resumes: bool = False  # keep what was computed before each layer, to run the model from there
    needs_layers: bool = True


@cache
def pass_options(needs: tuple[tuple[str, ...], ...], *, reruns: bool = False) -> PassOptions:
    """Say what one forward pass must do to serve methods with these needs. With ``reruns`` the model runs again in any case.

    A mode may change the gradients, so the pass runs in one only if all gradients are computed in it. Evidence that needs another
    mode runs the model again.
    """
    required = [requirements(names) for names in needs]
    kinds = [kind for entry in required for kind in entry.kinds]
    modes = {kind.mode for kind in kinds if kind.graph}
    mode = modes.pop() if len(modes) == 1 else None
    return PassOptions(
        graph=any(kind.graph == "layer" for kind in kinds),
        input_graph=any(kind.graph == "input" and kind.mode is mode for kind in kinds),
        mode=mode,
        reruns=reruns or any(kind.reruns or kind.grid in ("input", "attention") for kind in kinds),
        resumes=any(kind.reruns == "head" for kind in kinds),
        needs_layers=any(entry.grid == "layer" for entry in required),
    )


@dataclass(eq=False)
class ScoredPass:
    """A forward pass and one target's scores in it, one an image. Evidence is made when it is first needed, and kept."""

    forward_pass: ForwardPass
    target: Target
    scores: Scores
    layers: Sequence[str]  # at which the target is explained
    _made: dict[tuple[Any, ...], tuple[Any, list[Caution]]] = field(default_factory=dict)
    _pinned: dict[int, Target] = field(default_factory=dict)
    _checked: set[tuple[int, int]] = field(default_factory=set)

    def evidence(self, needs: Sequence[str], layer: str) -> list[dict[str, Any]]:
        """Make what a method needs: one set for the batch, or one an image if the method runs the model again itself."""
        made, queries = {}, {}
        for name in needs:
            kind = EVIDENCE[name]
            arguments = [layer] if kind.grid == "layer" else []
            if kind.per_image:
                queries[name] = partial(kind.make, self, *arguments)
            else:
                made[name] = self.once(kind.make, *arguments)
        if not queries:
            return [made]
        return [
            {name: partial(queries[name], image) if name in queries else _of_image(made[name], image) for name in needs}
            for image in range(len(self.forward_pass.batch.images))
        ]

    @cached_property
    def layer_gradients(self) -> dict[str, Tensor]:
        """The scores' gradients by the output of each layer, from one backward pass. The graph is kept for other evidence."""
        return self.forward_pass.recording.gradients(self.scores, keep_graph=True, names=self.layers)

    def once(self, make: Callable[..., Made], *arguments: Any) -> Made:
        """Call ``make(self, *arguments)`` the first time, and give the same result, with its cautions, from then on."""
        key = (make, *arguments)
        if key not in self._made:
            before = len(self.forward_pass.cautions)
            self._made[key] = make(self, *arguments), self.forward_pass.cautions[before:]
        made, cautions = self._made[key]
        for caution in cautions:
            self.forward_pass.caution(caution)
        result: Made = made
        return result

    def score_batch(self, output: Any, target: Target | None = None) -> Scores:
        """Score another output of the model for the same batch, by this target or by another."""
        target, count = target or self.target, len(self.forward_pass.batch.images)
        read = self.forward_pass.read(output, count)
        return target.checked_score(read)

    def score_copies(self, image: int, output: Any, count: int) -> Scores:
        """Score what the model returned for ``count`` changed copies of an image, by this target as it is for that image."""
        target, read = self.pinned(image), self.forward_pass.read(output, count)
        if target.reads_raw_output:
            self._check_copies(target, image, count)
        return target.checked_score(read)

    def pinned(self, image: int) -> Target:
        """Return the target as it is for one image, where it reads the same classes and places in changed copies of it."""
        if image not in self._pinned:
            self._pinned[image] = self.target.pin(self.forward_pass.output, image)
        return self._pinned[image]

    def _check_copies(self, target: Target, image: int, count: int) -> None:
        """Refuse a callable that scores copies of an image unlike the image: it reads the batch by position."""
        if (image, count) in self._checked:
            return
        self._checked.add((image, count))
        copies = repeat_image(self.forward_pass.raw_output, image, len(self.forward_pass.batch.images), count)
        read = self.forward_pass.read(copies, count)
        scores, score = target.checked_score(read), self.scores[image]
        if not same_output(scores.detach(), score.detach().expand(count)):
            raise TargetError(
                f"the target {target.describe(read, 0)!r} scores {count} copies of image {image} otherwise than the image "
                "itself",
                remedy=Remedy(
                    "a method that asks again needs a target that treats all images alike: for classes give a tensor of "
                    "labels, for others targets.PerImage([...])"
                ),
            )


def _of_image(evidence: Any, image: int) -> Any:
    row = slice(image, image + 1)
    return [tensor[row] for tensor in evidence] if isinstance(evidence, list) else evidence[row]
