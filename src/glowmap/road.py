"""The road: model + images -> layer -> capture -> score -> evidence -> method -> explanation."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, TypeAlias, overload

import torch
from torch import Tensor, nn

from glowmap.capture import borrowed, record, remember
from glowmap.choosing import checked_layout, choose, gathering, grids_of
from glowmap.errors import LayerError, ModelError, TargetError
from glowmap.evidence import Evidence, wide
from glowmap.explanation import Explanation, Explanations, Prediction
from glowmap.forward import Run, called
from glowmap.images import Batch, Shown
from glowmap.layers import Choice, LayerName, find_layers
from glowmap.methods import METHODS, Method
from glowmap.methods.asked import asks, differentiates, methods_asked, resumes, smoothing_asked
from glowmap.methods.smoothing import Variant, resized_like, variants
from glowmap.metrics import energy_share
from glowmap.models import Model, as_model
from glowmap.notes import Found, map_notes, mirrored_notes, run_notes
from glowmap.progress import tracked
from glowmap.shapes import RawMaps, Scores
from glowmap.structure import tensors_in
from glowmap.targets import Answer, Each, Target, TargetLike, as_questions, checked, settled

MethodLike: TypeAlias = str | Method

INPUT = "input"  # in the place of a layer's name, for methods whose maps lie on the input itself
ATTENTION = "attention"  # the same for those whose maps lie on the patches that attend


@overload
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: TargetLike = None,
    layer: LayerName | None = None,
    method: MethodLike = "grad_cam",
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
    method: Any = "grad_cam",
    smooth: Any = (),
    seed: int = 0,
) -> Any: ...
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: Any = None,
    method: Any = "grad_cam",
    smooth: Any = (),
    seed: int = 0,
) -> Any:
    """Show where a layer holds the evidence for a score, for one picture or a batch.

    ``model`` is any module (then ``images`` are its input tensors: a tensor, a tuple of arguments, a dict of keywords) or what
    ``glowmap.load`` returned (then also paths, PIL pictures, arrays, bytes, or a list of them). ``target`` is a class by index
    or name, ``targets.Pixels``, a callable from the raw output to one score per image, a tensor with a class index for each
    image, or None for the model's own answer: the likeliest class, or the one predicted at most pixels. ``layer`` is a dotted
    name or a module of the model, or None for the one that is found by evidence (``glowmap.Explainer(model).find(images)`` says
    which and why). ``method`` is a name of ``METHODS``, or one of them with its knobs set: ``METHODS["rise"].tuned(masks=2000)``.
    A list of targets, of methods or of layers gives :class:`Explanations`, question by question, method by method and layer by
    layer, from one forward pass.

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
        self._remembered = False  # from an earlier input of this shape

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
            self._choice = self._found(batch, as_questions(target)[0])[0]
            return self._choice

    def layers(
        self, batch: Batch, question: Target | None = None, *, blindly: bool = False, anew: bool = False
    ) -> dict[str, nn.Module]:
        """Give the layers to explain, by name: those named, or the one found (of the borrowed model)."""
        if self._named is not None:
            return self._named
        self._choice, self._remembered = None, False  # until there is one
        self._choice, self._remembered = self._found(
            batch, question or as_questions(None)[0], blindly=blindly, anew=anew
        )
        return find_layers(self.model.module, self._choice.name)

    def _found(
        self, batch: Batch, question: Target, *, blindly: bool = False, anew: bool = False
    ) -> tuple[Choice, bool]:
        read = partial(self._read, batch, lambda logits: logits)
        return choose(self.model.module, batch, read, question, blindly=blindly, anew=anew)

    def __call__(
        self, images: Any, *, target: Any = None, method: Any = "grad_cam", smooth: Any = (), seed: int = 0
    ) -> Explanation | Explanations:
        """Explain images, as :func:`explain` does."""
        explanations = self.all(images, target=target, method=method, smooth=smooth, seed=seed)
        several = isinstance(target, list | tuple) or isinstance(method, list | tuple) or not self._one_layer
        return explanations if several else explanations[0]

    def all(
        self, images: Any, *, target: Any = None, method: Any = "grad_cam", smooth: Any = (), seed: int = 0
    ) -> Explanations:
        """Explain images, and give a sequence also for one question, one method and one layer."""
        kinds = smoothing_asked(smooth)
        chosen = [replace(one, principal="principal" in kinds) for one in methods_asked(method)]
        questions = as_questions(target)
        with torch.inference_mode(False):  # whose tensors autograd may not save
            batch = self.model.read(images)
        with borrowed(self.model.module) as was_training:
            shortly = partial(self._all, batch, questions, chosen, kinds, seed, was_training)
            try:
                return shortly()
            except (LayerError, TargetError):
                if not self._remembered:
                    raise
                # the layer remembered for such input may not serve this one: another branch ran, another head was asked
                return shortly(anew=True)

    def _all(
        self,
        batch: Batch,
        questions: list[Target],
        chosen: list[Method],
        kinds: list[str],
        seed: int,
        was_training: bool,
        *,
        anew: bool = False,
    ) -> Explanations:
        layers: dict[str, nn.Module] = {}
        if not all(one.at_input or one.of_attention for one in chosen):
            layers = self.layers(batch, questions[0], blindly=not differentiates(chosen), anew=anew)
        run = self.run(
            batch, layers, asks=bool(kinds) or asks(chosen), resuming=resumes(chosen), graph=differentiates(chosen)
        )
        shared = self.shared(run, was_training)  # before a target has its hands on the output
        asked = [(question, _score(question, run.answer)) for question in questions]
        run.notes += mirrored_notes(kinds, questions, run)
        if kinds:
            maps = self._averaged(run, [question for question, _ in asked], chosen, variants(kinds, batch.images, seed))
        else:
            maps = {
                (number, *key): raw
                for number, (question, score) in enumerate(asked)
                for key, raw in _maps(chosen, Evidence(run, question, score), layers).items()
            }
        return Explanations(
            self._explanation(run, found, asked[number], " + ".join((chosen[one].name, *kinds)), layer, shared)
            for (number, one, layer), found in maps.items()
        )

    def shared(self, run: Run, was_training: bool) -> dict[str, Any]:
        """Gather what all explanations of one run have in common."""
        doubts = self._choice.doubts if self._choice is not None and self._choice.name in run.layers else ()
        run.notes[:0] = [*self.model.notes, *doubts, *run_notes(run, was_training)]
        return {
            "model": self.model.name,
            "input_size": run.answer.input_size,
            "pictures": run.batch.pictures,
            "prediction": _prediction(run.answer),
        }

    def _averaged(
        self, run: Run, questions: list[Target], methods: Sequence[Method], changes: Sequence[Variant]
    ) -> dict[tuple[int, int, str], Found]:
        """Average the maps of changed images, laid back over each other; the questions are those of the unchanged ones."""
        sums: dict[tuple[int, int, str], RawMaps] = {}
        notes: dict[tuple[int, int, str], dict[str, None]] = {}
        grids = {name: run.maps(name, run.recording[name].output.detach())[:, :1] for name in run.layers}
        grids[INPUT] = run.batch.images[:, :1]
        fixed = [Each([settled(question, run.answer, i) for i in range(run.answer.batch)]) for question in questions]
        for change in tracked(changes, len(changes), "smoothing"):
            changed = self.run(
                run.batch.changed(change.change),
                run.layers,
                asks=True,
                resuming=resumes(methods),
                graph=differentiates(methods),
                laid_back=partial(_back, change, run),
            )
            for number, question in enumerate(fixed):
                evidence = Evidence(changed, question, _score(question, changed.answer))
                for (method, layer), found in _maps(methods, evidence, run.layers).items():
                    key, back = (number, method, layer), change.undo(found.raw[:, None])
                    back = resized_like(back, grids.setdefault(layer, back))[:, 0]
                    sums[key] = sums[key] + back if key in sums else back
                    notes.setdefault(key, {}).update(dict.fromkeys(found.notes))
        return {key: Found(total / len(changes), notes=tuple(notes[key])) for key, total in sums.items()}

    def _explanation(
        self, run: Run, found: Found, asked: tuple[Target, Scores], method: str, layer: str, shared: dict[str, Any]
    ) -> Explanation:
        question, score = asked
        wordings = tuple(question.wording(run.answer, image) for image in range(run.answer.batch))
        notes = (*run.notes, *map_notes(found, layer, wordings))
        return Explanation(
            found.raw, wide(score.detach()), layer=layer, method=method, targets=wordings, notes=notes, **shared
        )

    def run(
        self,
        batch: Batch,
        layers: dict[str, nn.Module],
        *,
        asks: bool,
        resuming: bool,
        graph: bool = False,
        laid_back: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> Run:
        """Run the borrowed model once: ``graph`` for gradients, ``asks`` for more questions, ``resuming`` to keep its trunk."""
        with ExitStack() as stack:
            stack.enter_context(gathering(self.model.module, batch))
            recording = stack.enter_context(record(layers, graph=graph))
            run = Run(self.model.module, batch, layers, recording, partial(self._read, batch, laid_back))
            run.grids = partial(grids_of, self.model.module, batch)
            run.check = partial(checked_layout, self.model.module, batch)
            if self._choice is not None and self._choice.name in layers:
                run.layouts[self._choice.name] = self._choice.layout
            kind = batch.images.device.type
            if torch.is_autocast_enabled(kind):
                run.autocast = (True, torch.get_autocast_dtype(kind))
            if asks:
                for name, layer in layers.items() or [(INPUT, None)]:
                    run.trunks[name] = stack.enter_context(remember(self.model.module, layer, outputs=resuming))
            # the model may write into its input, which further questions change and ask about
            own = batch.copied() if asks else batch
            run.output = called(self.model.module, own)
            run.overwrites = any(given._version for given in tensors_in([own.arguments, own.keywords]))
        return run

    def _read(self, batch: Batch, laid_back: Callable[[Tensor], Tensor], output: Any, images: int) -> Answer:
        return Answer(
            output,
            batch=images,
            read_logits=lambda raw: laid_back(self.model.read_logits(raw)),
            class_names=self.model.class_names,
            input_size=tuple(batch.images.shape[2:]),
            model=self.model.name,
            seen_part=partial(_seen_part, batch.pictures),
        )

    def __repr__(self) -> str:
        return f"<Explainer of {self.model.name} at {self.layer or 'a layer that it will find'}>"


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
    return Found(raw, zero.flatten(1).all(1), unused, notes)


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


def _prediction(answer: Answer) -> Prediction | None:
    """Keep what the model said for the picture beside the map; an output that cannot be read is no error here."""
    try:
        logits = answer.logits.detach()
    except TargetError:
        return None
    names = tuple(answer.name(index) for index in range(logits.shape[1]))
    if logits.ndim > 2:
        one = logits.shape[1] == 1
        names = (f"not {names[0]}", names[0]) if one else names
        return Prediction(names, labels=answer.labels + 1 if one else answer.labels)
    return Prediction(names, probabilities=logits.float().softmax(1) if len(names) > 1 else logits.float().sigmoid())


def _seen_part(pictures: Sequence[Shown], mask: Tensor, image: int) -> Tensor | None:
    return pictures[image].part_of(mask) if pictures else None
