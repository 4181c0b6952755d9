"""The road: model + images -> layer -> capture -> score -> method -> explanation."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn

from glowmap.capture import Recording, borrowed, record
from glowmap.errors import GlowmapError, MethodError, ModelError, TargetError
from glowmap.explanation import Explanation, Explanations, Prediction
from glowmap.images import Batch, Picture
from glowmap.layers import LayerName, Surveyed, find_layers, lay_out, surveyed
from glowmap.methods import METHODS, Method
from glowmap.models import Model, as_model, read_logits
from glowmap.shapes import Images, Maps, RawMaps, Scores
from glowmap.targets import Answer, Target, as_questions, checked


@overload
def explain(
    model: nn.Module | Model, images: Any, *, target: Any = None, layer: LayerName, method: str = "grad_cam"
) -> Explanation: ...
@overload
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: LayerName | Sequence[LayerName] | None = None,
    method: str = "grad_cam",
) -> Explanation | Explanations: ...
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: LayerName | Sequence[LayerName] | None = None,
    method: str = "grad_cam",
) -> Explanation | Explanations:
    """Show where a layer holds the evidence for a score, for one picture or a batch.

    ``model`` is any module (then ``images`` are its input tensors: a tensor, a tuple of arguments, a dict of keywords) or what
    ``glowmap.load`` returned (then also paths, PIL pictures, arrays, bytes, or a list of them). ``target`` is a class by index
    or name, ``targets.Pixels``, a callable from the raw output to one score per image, a tensor with a class index for each
    image, or None for a classifier's own answer. ``layer`` is a dotted name or a module of the model. A list of targets or of
    layers gives :class:`Explanations`, question by question and layer by layer, from one forward pass.

    Raises an error of the tree in ``glowmap.errors`` for whatever cannot be explained.
    """
    return Explainer(model, layer=layer)(images, target=target, method=method)


class Explainer:
    """A model and its layers, bound once and asked many times."""

    def __init__(self, model: nn.Module | Model, *, layer: LayerName | Sequence[LayerName] | None = None) -> None:
        self.model = as_model(model)
        self.layers = find_layers(self.model.module, layer)
        self._one_layer = not isinstance(layer, list | tuple)

    def __call__(self, images: Any, *, target: Any = None, method: str = "grad_cam") -> Explanation | Explanations:
        """Explain images, as :func:`explain` does."""
        explanations = self.all(images, target=target, method=method)
        return explanations if isinstance(target, list | tuple) or not self._one_layer else explanations[0]

    def all(self, images: Any, *, target: Any = None, method: str = "grad_cam") -> Explanations:
        """Explain images, and give a sequence also for one question at one layer."""
        chosen = _method(method)
        questions = as_questions(target)
        batch = self.model.read(images)
        with record(self.model.module, self.layers) as recording:
            answer = Answer(
                _run(self.model.module, batch),
                len(batch.images),
                read_logits,
                self.model.class_names,
                tuple(batch.images.shape[2:]),
                self.model.name,
                partial(_seen_part, batch.pictures),
            )
            scores = [_score(question, answer) for question in questions]
            maps = self._maps(recording, chosen, scores, batch.images)
        context = self._context(batch, answer, recording)
        return Explanations(
            _explanation(chosen, evidence, score, question, answer, context | {"layer": layer})
            for question, score, layers in zip(questions, scores, maps, strict=True)
            for layer, evidence in layers.items()
        )

    def _maps(
        self, recording: Recording, method: Method, scores: list[Scores], images: Images
    ) -> list[dict[str, dict[str, Maps]]]:
        """Make the evidence that the method names: for each question, by layer, by kind."""
        activations = {name: recording[name].output.detach() for name in self.layers}
        found = []
        for number, score in enumerate(scores, 1):
            evidence = {"activations": activations}
            if "gradients" in method.needs:
                evidence["gradients"] = recording.gradients(score, keep_graph=number < len(scores))
            found.append(
                {
                    name: {kind: _wide(lay_out(evidence[kind][name], name, images)) for kind in method.needs}
                    for name in self.layers
                }
            )
        return found

    def _context(self, batch: Batch, answer: Answer, recording: Recording) -> dict[str, Any]:
        """Gather what all explanations of this call share."""
        notes = list(self.model.notes)
        if any(module.training for module in self.model.module.modules()):
            notes.append("the model is in training mode; it was explained in evaluation mode and given back as it was")
        notes += [
            f"layer {name!r} ran {recording[name].calls} times; its last run is explained"
            for name in self.layers
            if recording[name].calls > 1
        ]
        return {
            "model": self.model.name,
            "input_size": tuple(batch.images.shape[2:]),
            "pictures": batch.pictures,
            "prediction": _prediction(answer),
            "notes": tuple(notes),
        }

    def __repr__(self) -> str:
        return f"<Explainer of {self.model.name} at {', '.join(self.layers)}>"


def survey(model: nn.Module | Model, images: Any, *, depth: int = 2) -> list[Surveyed]:
    """Run the model once and list the layers worth naming, at most ``depth`` names deep, in the order in which they ran."""
    asked = as_model(model)
    batch = asked.read(images)
    with borrowed(asked.module), torch.no_grad(), surveyed(asked.module, batch.images, depth=depth) as rows:
        _run(asked.module, batch)
    return rows


def _method(name: str) -> Method:
    if not isinstance(name, str):
        raise MethodError(f"a method is a name ({', '.join(METHODS)}), not {type(name).__name__}")
    return METHODS[name]


def _run(module: nn.Module, batch: Batch) -> Any:
    """Call the model; what it raises becomes a ModelError that says on what input."""
    try:
        return module(*batch.arguments, **batch.keywords)
    except GlowmapError:
        raise
    except Exception as error:
        message = (str(error).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"{type(module).__name__} raised {type(error).__name__}: {message}; "
            f"check that it takes an input of {' x '.join(map(str, batch.images.shape))} "
            f"({str(batch.images.dtype).removeprefix('torch.')} on {batch.images.device})"
        ) from error


def _score(question: Target, answer: Answer) -> Scores:
    return checked(question.score(answer), answer.batch, question.wording(answer, 0))


def _explanation(
    method: Method, evidence: dict[str, Maps], scores: Scores, question: Target, answer: Answer, context: dict[str, Any]
) -> Explanation:
    """Apply the method, refuse what is not finite, and note what a person must know before trusting the map."""
    layer = context["layer"]
    raw = method.function(**evidence)
    if (
        not raw.isfinite().all()
    ):  # what is not finite in the evidence shows in the map: one small test in place of three large
        _refuse_not_finite({**evidence, f"{method.name} map": raw}, layer)
    targets = tuple(question.wording(answer, image) for image in range(answer.batch))
    notes = (*context["notes"], *_map_notes(raw, evidence, layer, targets))
    return Explanation(raw, scores.detach(), method=method.name, targets=targets, **(context | {"notes": notes}))


def _refuse_not_finite(evidence: dict[str, Tensor], layer: str) -> NoReturn:
    for kind, maps in evidence.items():
        wrong = [str(i) for i, image in enumerate(maps) if not image.isfinite().all()]
        if wrong:
            raise ModelError(
                f"NaN or infinity in the {kind} of layer {layer!r} for image {', '.join(wrong[:10])}; "
                "look for overflow (half precision?), division by zero or damaged weights in the model"
            )
    raise AssertionError("called for a map that is not finite")


def _map_notes(raw: RawMaps, evidence: dict[str, Maps], layer: str, targets: Sequence[str]) -> list[str]:
    """Say why a heatmap is blank, image by image."""
    notes = []
    for image, wording in enumerate(targets):
        where = f"image {image}, " if len(targets) > 1 else ""
        if "gradients" in evidence and not evidence["gradients"][image].any():
            reason = "the score's gradient is zero everywhere there, so this layer cannot move it; try an earlier layer"
        elif raw[image].max() <= 0:
            reason = "the raw map has no positive value, so its heatmap is blank: nothing there speaks for it; see .raw"
        elif raw[image].min() == raw[image].max():
            reason = "the raw map has the same value everywhere, so its heatmap is blank"
        else:
            continue
        notes.append(f"{where}{wording} at {layer!r}: {reason}")
    return notes


def _wide(maps: Maps) -> Maps:
    """Leave half precision, whose sums over channels overflow and cancel; double precision stays."""
    return maps if maps.dtype == torch.float64 else maps.float()


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


def _seen_part(pictures: Sequence[Picture], mask: Tensor, image: int) -> Tensor | None:
    """Cut a mask of a picture's own size down to what the model saw of it; None for any other size."""
    if not pictures or (mask.shape[1], mask.shape[0]) != pictures[image].image.size:
        return None
    left, top, right, bottom = pictures[image].box
    return mask[top:bottom, left:right]
