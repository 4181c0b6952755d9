"""The road: model + images -> layer -> capture -> score -> evidence -> method -> explanation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, TypeAlias, overload

import torch
from torch import Tensor, nn

from glowmap.capture import borrowed
from glowmap.choosing import asks_for_its_own
from glowmap.errors import LayerError, ModelError, TargetError
from glowmap.evidence import Evidence
from glowmap.explanation import Explanation, Explanations
from glowmap.forward import Run
from glowmap.images import Batch
from glowmap.layers import Choice, LayerName, find_layers
from glowmap.methods import METHODS, Method
from glowmap.methods.asked import asks, differentiates, methods_asked, resumes, smoothing_asked
from glowmap.methods.smoothing import Variant, resized_like, variants
from glowmap.metrics import energy_share
from glowmap.models import Model, as_model
from glowmap.notes import Found, blind_notes, changed_notes, map_notes
from glowmap.preparing import prepared
from glowmap.progress import tracked
from glowmap.shapes import RawMaps, Scores
from glowmap.structure import tensors_in, wide
from glowmap.targets import (
    Answer,
    Each,
    Target,
    TargetLike,
    as_questions,
    checked,
    marks_of,
    notes_of,
    of_places,
    ranks,
    settled,
)
from glowmap.visit import ATTENTION, INPUT, Visit

MethodLike: TypeAlias = str | Method


@overload
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: TargetLike = None,
    layer: LayerName | None = None,
    method: MethodLike | None = None,
    smooth: str | Sequence[str] = (),
    seed: int = 0,
) -> Explanation: ...
@overload
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: Any = None,
    method: Any = None,
    smooth: Any = (),
    seed: int = 0,
) -> Any: ...
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: Any = None,
    method: Any = None,
    smooth: Any = (),
    seed: int = 0,
) -> Any:
    """Show where a layer holds the evidence for a score, for one picture or a batch.

    ``model`` is any module (then ``images`` are its input tensors: a tensor, a tuple of arguments, a dict of keywords) or what
    ``glowmap.load`` returned (then also paths, PIL pictures, arrays, bytes, or a list of them). ``target`` is a class by index
    or name, a question of :mod:`glowmap.targets` (pixels, an object under a point, a detection, a sentence, a unit, and what
    negates and contrasts these), a callable from the raw output to one score per image, a tensor with a class index for each
    image, or None for the model's own answer: the likeliest class, the one predicted at most pixels, the surest detection, or
    the words that it says. ``layer`` is a dotted name or a module of the model, or None for the one that is found by evidence
    (``glowmap.Explainer(model).find(images)`` says which and why). ``method`` is a name of ``METHODS``, or one of them with its
    knobs set, ``METHODS["rise"].tuned(masks=2000)``; None is hires_cam for questions about a part of the places (pixels,
    detections) and grad_cam for others. A list of targets, of methods or of layers gives :class:`Explanations`, question by
    question, method by method and layer by layer, from one forward pass, but for texts that the model reads one by one.

    ``smooth`` averages the maps of changed images ("flips", "scales", "noise", drawn from ``seed``), or takes the "principal"
    component of the channels in the place of their sum; several are combined.

    Raises an error of the tree in ``glowmap.errors`` for whatever cannot be explained.
    """
    return Explainer(model, layer=layer)(images, target=target, method=method, smooth=smooth, seed=seed)


def compare(
    model: nn.Module | Model,
    images: Any,
    target: Any = None,
    *,
    methods: Sequence[MethodLike] | None = None,
    layers: LayerName | Sequence[LayerName] | None = None,
) -> Explanations:
    """Put one question by several methods at several layers, from one forward pass and as few backward passes as there can be.

    ``methods`` are by default all that take no more than that (but for kpca_cam, whose cost is the cube of the cells). The
    answer's ``panel()`` has a row a method and a column a layer. Raises as :func:`explain` does.
    """
    if isinstance(methods, str | Method):
        methods = [methods]
    if methods is None:
        cheap = {"activations", "gradients"}
        methods = [name for name, one in METHODS.items() if {*one.needs} <= cheap and name != "kpca_cam"]
    return Explainer(model, layer=layers).all(images, target=target, method=list(methods))


class Explainer:
    """A model and its layers, bound once and asked many times."""

    def __init__(self, model: nn.Module | Model, *, layer: LayerName | Sequence[LayerName] | None = None) -> None:
        self.model = as_model(model)
        self._one_layer = not isinstance(layer, list | tuple)
        self._named = None if layer is None else find_layers(self.model.module, layer)
        self._choice: Choice | None = None

    @property
    def layer(self) -> Choice | str | None:
        """What is explained: the layers named, or the one that was found and why; None before the first images came."""
        return self._choice if self._named is None else ", ".join(self._named)

    def find(self, images: Any, *, target: Any = None) -> Choice:
        """Find the layer worth looking at for such images, with the runners-up; known at once if it was found before.

        Raises LayerError where no layer can be read as a grid with a gradient at its places.
        """
        batch = self.model.read(images)
        with borrowed(self.model.module):
            first = prepared(self.model, batch, as_questions(target))[0]
            with self.visit(first.batch, first.model) as visit:
                return visit.find(first.questions[0][1])

    @contextmanager
    def visit(self, batch: Batch, model: Model | None = None) -> Iterator[Visit]:
        """Visit the (borrowed) model with some input; ``model`` is it with what a question needs of it."""
        visited = Visit(model or self.model, batch, self._named)
        with visited.model.opened(visited.model.module):
            yield visited
        self._choice = next(iter(visited.choices.values()), None)

    def __call__(
        self, images: Any, *, target: Any = None, method: Any = None, smooth: Any = (), seed: int = 0
    ) -> Explanation | Explanations:
        """Explain images, as :func:`explain` does."""
        explanations = self.all(images, target=target, method=method, smooth=smooth, seed=seed)
        several = isinstance(target, list | tuple) or isinstance(method, list | tuple) or not self._one_layer
        return explanations if several or len(explanations) > 1 else explanations[0]

    def all(
        self, images: Any, *, target: Any = None, method: Any = None, smooth: Any = (), seed: int = 0
    ) -> Explanations:
        """Explain images, and give a sequence also for one question, one method and one layer."""
        kinds = smoothing_asked(smooth)
        chosen = None if method is None else _principal(methods_asked(method), kinds)
        questions = as_questions(target)
        with torch.inference_mode(False):  # whose tensors autograd may not save
            batch = self.model.read(images)
        found: list[tuple[int, Explanation]] = []
        with borrowed(self.model.module) as was_training:
            self._choice = None  # until there is one
            for group in prepared(self.model, batch, questions):
                with self.visit(group.batch, group.model) as visit:
                    answered = partial(_answered, visit, group.questions, chosen, kinds, seed, was_training)
                    try:
                        found += answered()
                    except (LayerError, TargetError):
                        if not visit.remembered:
                            raise
                        # the layer remembered for such input may not serve this one: another branch ran, another head was asked
                        found += answered(anew=True)
        return Explanations(explanation for _, explanation in sorted(found, key=lambda one: one[0]))

    def __repr__(self) -> str:
        return f"<Explainer of {self.model.name} at {self.layer or 'a layer that it will find'}>"


@dataclass(frozen=True)
class _Asked:
    """A question that was put: its number, its score, and by which methods and at which layers it is explained."""

    number: int
    question: Target
    scores: Scores
    methods: list[Method]
    layers: dict[str, nn.Module]


_Maps: TypeAlias = dict[tuple[int, str], Found]  # by the method's number and the layer


def _answered(
    visit: Visit,
    questions: Sequence[tuple[int, Target]],
    chosen: list[Method] | None,
    kinds: list[str],
    seed: int,
    was_training: bool,
    *,
    anew: bool = False,
) -> list[tuple[int, Explanation]]:
    """Answer questions from one forward pass, each with its number."""
    planned = chosen or [METHODS["grad_cam"]]  # what is chosen later in its place needs no more
    looking = not all(one.at_input or one.of_attention for one in planned)
    layers = _layers_asked(visit, questions, blindly=not differentiates(planned), anew=anew) if looking else {}
    together = {name: layer for own in layers.values() for name, layer in own.items()}
    run = visit.run(
        together, asks=bool(kinds) or asks(planned), resuming=resumes(planned), graph=differentiates(planned)
    )
    shared = visit.shared(run, was_training)  # before a target has its hands on the output
    asked = [
        _Asked(
            number,
            question,
            _score(question, run.answer),
            chosen or _principal(_default(question, run.answer), kinds),
            layers.get(at, {}),
        )
        for at, (number, question) in enumerate(questions)
    ]
    run.notes += changed_notes(kinds, [one.question for one in asked], run)
    maps = (
        _averaged(visit, run, asked, kinds, seed)
        if kinds
        else [
            _maps(one.methods, Evidence(run, one.question, one.scores, list(one.layers)), one.layers) for one in asked
        ]
    )
    return [
        (one.number, _explanation(visit, run, noted, one, " + ".join((one.methods[by].name, *kinds)), layer, shared))
        for one, own in zip(asked, maps, strict=True)
        for (by, layer), found in own.items()
        for noted in [replace(found, notes=(*found.notes, *blind_notes(one.methods[by], one.question)))]
    ]


def _layers_asked(
    visit: Visit, questions: Sequence[tuple[int, Target]], *, blindly: bool, anew: bool
) -> dict[int, dict[str, nn.Module]]:
    """Give each question its layers: those of the first that shares them, unless it needs its own."""
    own = [asks_for_its_own(question) for _, question in questions]
    found: dict[int, dict[str, nn.Module]] = {}
    for at, (_, question) in enumerate(questions):
        sharing = own.index(False) if not own[at] else at
        found[at] = found.get(sharing) or visit.layers(question, blindly=blindly, anew=anew)
    return found


def _default(question: Target, answer: Answer) -> list[Method]:
    """Choose a method where none is named: an element-wise one where the question is about a part of the places."""
    return [METHODS["hires_cam" if of_places(question, answer) else "grad_cam"]]


def _principal(methods: list[Method], kinds: list[str]) -> list[Method]:
    return [replace(one, principal="principal" in kinds) for one in methods]


def _averaged(visit: Visit, run: Run, asked: Sequence[_Asked], kinds: list[str], seed: int) -> list[_Maps]:
    """Average the maps of changed images, laid back over each other; the questions are those of the unchanged ones."""
    sums: dict[tuple[int, int, str], RawMaps] = {}
    notes: dict[tuple[int, int, str], dict[str, None]] = {}
    changes = variants(kinds, run.batch.images, seed)
    grids = {name: run.maps(name, run.recording[name].output.detach())[:, :1] for name in run.layers}
    grids[INPUT] = run.batch.images[:, :1]
    fixed = [Each([settled(one.question, run.answer, i) for i in range(run.answer.batch)]) for one in asked]
    methods = [method for one in asked for method in one.methods]
    for change in tracked(changes, len(changes), "smoothing"):
        again = visit.run(
            run.layers,
            asks=True,
            resuming=resumes(methods),
            graph=differentiates(methods),
            batch=run.batch.changed(change.change),
            laid_back=partial(_back, change, run),
        )
        for at, (one, question) in enumerate(zip(asked, fixed, strict=True)):
            evidence = Evidence(again, question, _score(question, again.answer), list(one.layers))
            for (method, layer), found in _maps(one.methods, evidence, one.layers).items():
                key, back = (at, method, layer), change.undo(found.raw[:, None])
                back = resized_like(back, grids.setdefault(layer, back))[:, 0]
                sums[key] = sums[key] + back if key in sums else back
                notes.setdefault(key, {}).update(dict.fromkeys(found.notes))
    maps: list[_Maps] = [{} for _ in asked]
    for (at, method, layer), total in sums.items():
        maps[at][method, layer] = Found(total / len(changes), notes=tuple(notes[at, method, layer]))
    return maps


def _explanation(
    visit: Visit, run: Run, found: Found, asked: _Asked, method: str, layer: str, shared: dict[str, Any]
) -> Explanation:
    answer, question = run.answer, asked.question
    wordings = tuple(question.wording(answer, image) for image in range(answer.batch))
    own = (*visit.doubts(layer), *notes_of(question, answer), *map_notes(found, layer, wordings))
    canvas = None if layer in (INPUT, ATTENTION) else answer.canvas
    said = shared["prediction"]
    return Explanation(
        found.raw,
        wide(asked.scores.detach()),
        layer=layer,
        method=method,
        targets=wordings,
        canvas=canvas or answer.input_size,
        marks=tuple(marks_of(question, answer, image) for image in range(answer.batch)),
        notes=tuple(dict.fromkeys((*run.notes, *own))),
        **(shared | {"prediction": said if ranks(question) or answer.detects else None}),
    )


def _score(question: Target, answer: Answer) -> Scores:
    """Ask the target, hold it to its contract, and refuse one that wrote into the output, which the next would read."""
    outputs = list(tensors_in(answer.raw))
    versions = [output._version for output in outputs]
    asked = question.score(answer)
    wording = question.wording(answer, 0)
    scores = checked(asked, answer.batch, wording)
    if [output._version for output in outputs] != versions:
        raise TargetError(
            f"the target {wording!r} writes into the model's output in place; write output * 2, not output *= 2"
        )
    return scores


def _maps(methods: Sequence[Method], evidence: Evidence, layers: dict[str, nn.Module]) -> dict[tuple[int, str], Found]:
    """Apply every method at every layer, or once at the input, in the order in which they were asked for."""
    return {
        (number, layer): _map(method, evidence, layer)
        for number, method in enumerate(methods)
        for layer in _places(method, layers)
    }


def _places(method: Method, layers: dict[str, nn.Module]) -> list[str]:
    """Name what a method's maps are of: each layer, all of them, or the input."""
    if method.at_input or method.of_attention:
        return [INPUT if method.at_input else ATTENTION]
    return [", ".join(layers)] if method.joins_layers else list(layers)


def _map(method: Method, evidence: Evidence, layer: str) -> Found:
    """Apply a method, and refuse what is not finite."""
    before = len(evidence.notes)
    parts = evidence.of(method.needs, layer)
    with torch.autocast(evidence.device.type, enabled=False):  # a method's arithmetic is done where it is safe
        raw = torch.cat([method(**part) for part in parts])
    notes = tuple(evidence.notes[before:])
    del evidence.notes[before:]  # they are of this map alone
    if not raw.isfinite().all():  # what is not finite in the evidence shows in the map: one small test for all
        tensors = [kind for kind, value in parts[0].items() if isinstance(value, Tensor)]
        known = {kind: torch.cat([part[kind] for part in parts]) for kind in tensors}
        _refuse_not_finite({**known, f"{method.name} map": raw}, layer)
    if "gradients" not in method.needs:
        return Found(raw, notes=notes)
    zero = evidence.without_gradient(layer)
    unused = energy_share(raw.relu(), zero) if raw.shape == zero.shape else None
    cancelled = evidence.cancelled(layer) if method.pools else None
    return Found(raw, zero.flatten(1).all(1), unused, notes, cancelled, method.name)


def _back(change: Variant, run: Run, logits: Tensor) -> Tensor:
    """Lay what a dense model says of a changed image over what it says of the image itself."""
    dense = logits.ndim > 2 and logits[0, 0].numel() > 1
    return resized_like(change.undo(logits), run.answer.logits) if dense else logits


def _refuse_not_finite(evidence: dict[str, Tensor], layer: str) -> NoReturn:
    for kind, maps in evidence.items():
        wrong = [str(i) for i, image in enumerate(maps) if not image.isfinite().all()]
        if wrong:
            raise ModelError(
                f"NaN or infinity in the {kind} of layer {layer!r} for image {', '.join(wrong[:10])}; "
                "look for overflow (half precision?), division by zero or damaged weights in the model"
            )
    raise AssertionError("called for a map that is not finite")
