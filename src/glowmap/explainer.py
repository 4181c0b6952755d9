"""The road: model + images -> layer -> capture -> score -> evidence -> method -> explanation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, overload

import torch
from torch import nn

from glowmap import tree
from glowmap.capture import borrow, call_model
from glowmap.errors import LayerError, TargetError
from glowmap.evidence.cautions import MethodMap, blind_cautions, changed_cautions, map_cautions
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import ATTENTION, INPUT, is_cheap, pass_options
from glowmap.evidence.maps import Job, _averaged, _maps, _score
from glowmap.evidence.preparation import prepared
from glowmap.evidence.scored_pass import ScoredPass
from glowmap.evidence.session import Session, open_session
from glowmap.explanation.explanation import Explanation, Explanations
from glowmap.inputs import Batch
from glowmap.layers import Choice, LayerName, Surveyed, find_layers, surveyed
from glowmap.methods import METHODS, Method, read_methods, read_smoothing
from glowmap.models import Model, as_model
from glowmap.outputs import ModelOutput
from glowmap.targets import Target, TargetLike, as_targets


def survey(model: nn.Module | Model, images: Any, *, depth: int = 2) -> list[Surveyed]:
    """Run the model once and list the layers worth naming, at most ``depth`` names deep, in the order in which they ran."""
    asked = as_model(model)
    batch = asked.read(images)
    with borrow(asked.module), torch.no_grad():
        heard = asked.text_interface.passes(asked, batch, []) if asked.text_interface is not None else ()
        model_of_pass = heard[0].model if heard else asked
        with model_of_pass.around_forward(asked.module), surveyed(asked.module, batch.images, depth=depth) as rows:
            call_model(asked.module, heard[0].batch if heard else batch)
    return rows


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
    parameters set, ``METHODS["rise"].with_parameters(masks=2000)``; None is hires_cam for questions about a part of the places
    (pixels, detections) and grad_cam for others. A list of targets, of methods or of layers gives :class:`Explanations`, question
    by question, method by method and layer by layer, from one forward pass, but for texts that the model reads one by one.

    ``smooth`` averages the maps of changed images ("flips", "scales", "noise", drawn from ``seed``), or takes the "principal"
    component of the channels in the place of their sum; several are combined.

    Raises an error of the tree in ``glowmap.errors`` for whatever cannot be explained.
    """
    return Explainer(model, layer=layer)(images, target=target, method=method, smooth=smooth, seed=seed)


def compare(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: Any = None,
    method: Any = None,
    smooth: str | Sequence[str] = (),
    seed: int = 0,
) -> Explanations:
    """Explain images by several methods at several layers, from one forward pass and as few backward passes as possible.

    Takes the arguments of :func:`explain`; each of ``target``, ``layer`` and ``method`` may be a list. ``method`` is by default
    every method that takes one forward pass and at most one backward pass of the head. In ``panel()`` of the result a row is a
    method and a column is a layer. Raises as :func:`explain` does.
    """
    methods = [candidate for _, candidate in METHODS.items() if is_cheap(candidate)] if method is None else method
    return Explainer(model, layer=layer).explain_all(images, target=target, method=methods, smooth=smooth, seed=seed)


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
        with borrow(self.model.module):
            first = prepared(self.model, batch, as_targets(target))[0]
            with self._session(first.batch, first.model) as session:
                return session.find(first.questions[0][1])

    @contextmanager
    def _session(self, batch: Batch, model: Model) -> Iterator[Session]:
        """Open a session with the (borrowed) model, and remember the layer that it finds."""
        with open_session(model, batch, self._named) as session:
            yield session
        self._choice = next(iter(session.choices.values()), None)

    def __call__(
        self, images: Any, *, target: Any = None, method: Any = None, smooth: Any = (), seed: int = 0
    ) -> Explanation | Explanations:
        """Explain images, as :func:`explain` does."""
        explanations = self.explain_all(images, target=target, method=method, smooth=smooth, seed=seed)
        several = isinstance(target, list | tuple) or isinstance(method, list | tuple) or not self._one_layer
        return explanations if several or len(explanations) > 1 else explanations[0]

    def explain_all(
        self, images: Any, *, target: Any = None, method: Any = None, smooth: Any = (), seed: int = 0
    ) -> Explanations:
        """Explain images as :func:`explain` does. Returns a sequence also for a single target, method and layer."""
        kinds = read_smoothing(smooth)
        chosen = None if method is None else _principal(read_methods(method), kinds)
        questions = as_targets(target)
        with torch.inference_mode(False):  # whose tensors autograd may not save
            batch = self.model.read(images)
        found: list[tuple[int, Explanation]] = []
        with borrow(self.model.module) as was_training:
            self._choice = None  # until there is one
            for group in prepared(self.model, batch, questions):
                with self._session(group.batch, group.model) as visit:
                    answered = partial(_answered, visit, group.questions, chosen, kinds, seed, was_training)
                    try:
                        found += answered()
                    except (LayerError, TargetError):
                        if not visit.used_cache:
                            raise
                        # the layer remembered for such input may not serve this one: another branch ran, another head was asked
                        found += answered(anew=True)
        return Explanations(explanation for _, explanation in sorted(found, key=lambda one: one[0]))

    def __repr__(self) -> str:
        return f"<Explainer of {self.model.name} at {self.layer or 'a layer that it will find'}>"


def _answered(
    visit: Session,
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
    options = pass_options(planned)
    options = replace(options, reruns=bool(kinds) or options.reruns)
    run, layers = visit.forward([question for _, question in questions], options, ignore_cache=anew)
    shared = visit.common_fields(run, was_training)  # before a target has its hands on the output
    asked = [
        Job(
            number,
            question,
            _score(question, run.output),
            chosen or _principal(_default(question, run.output), kinds),
            layers[at],
        )
        for at, (number, question) in enumerate(questions)
    ]
    run.cautions += changed_cautions(kinds, [one.question for one in asked], run)
    maps = (
        _averaged(visit, run, asked, kinds, seed)
        if kinds
        else [
            _maps(one.methods, ScoredPass(run, one.question, one.scores, list(one.layers)), one.layers) for one in asked
        ]
    )
    return [
        (one.number, _explanation(visit, run, noted, one, " + ".join((one.methods[by].name, *kinds)), layer, shared))
        for one, own in zip(asked, maps, strict=True)
        for (by, layer), found in own.items()
        for noted in [replace(found, cautions=(*found.cautions, *blind_cautions(one.methods[by], one.question)))]
    ]


def _default(question: Target, answer: ModelOutput) -> list[Method]:
    """Choose a method where none is named: an element-wise one where the question is about a part of the places."""
    return [METHODS["hires_cam" if question.is_local(answer) else "grad_cam"]]


def _principal(methods: list[Method], kinds: list[str]) -> list[Method]:
    return [replace(method, reduction="principal") for method in methods] if "principal" in kinds else methods


def _explanation(
    visit: Session, run: ForwardPass, found: MethodMap, asked: Job, method: str, layer: str, shared: dict[str, Any]
) -> Explanation:
    answer, question = run.output, asked.question
    wordings = tuple(question.describe(answer, image) for image in range(answer.batch))
    own = (*visit.cautions(layer), *question.cautions(answer), *map_cautions(found, layer, wordings))
    canvas = None if layer in (INPUT, ATTENTION) else answer.canvas
    said = shared["prediction"]
    return Explanation(
        found.raw,
        tree.full_precision(asked.scores.detach()),
        layer=layer,
        method=method,
        target_names=wordings,
        canvas=canvas or answer.input_size,
        annotations=tuple(tuple(question.annotations(answer, image)) for image in range(answer.batch)),
        cautions=tuple(dict.fromkeys((*run.cautions, *own))),
        **(shared | {"prediction": said if question.is_class or answer.is_detector else None}),
    )
