"""The road: model + images -> layer -> capture -> score -> method -> explanation."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn, overload

import torch
from torch import Tensor, nn

from glowmap.capture import Recording, borrowed, record, tensors_in
from glowmap.errors import GlowmapError, MethodError, ModelError, TargetError, told
from glowmap.explanation import Explanation, Explanations, Prediction, is_flat
from glowmap.images import Batch, Picture
from glowmap.layers import LayerName, Surveyed, find_layers, lay_out, surveyed
from glowmap.methods import METHODS, Method
from glowmap.models import Model, as_model, read_logits
from glowmap.shapes import Images, Maps, RawMaps, Scores, crossed
from glowmap.targets import Answer, Target, TargetLike, as_questions, checked


@overload
def explain(
    model: nn.Module | Model, images: Any, *, target: TargetLike = None, layer: LayerName, method: str = "grad_cam"
) -> Explanation: ...
@overload
def explain(
    model: nn.Module | Model, images: Any, *, target: Any = None, layer: Any = None, method: str = "grad_cam"
) -> Any: ...
def explain(
    model: nn.Module | Model, images: Any, *, target: Any = None, layer: Any = None, method: str = "grad_cam"
) -> Any:
    """Show where a layer holds the evidence for a score, for one picture or a batch.

    ``model`` is any module (then ``images`` are its input tensors: a tensor, a tuple of arguments, a dict of keywords) or what
    ``glowmap.load`` returned (then also paths, PIL pictures, arrays, bytes, or a list of them). ``target`` is a class by index
    or name, ``targets.Pixels``, a callable from the raw output to one score per image, a tensor with a class index for each
    image, or None for the model's own answer: the likeliest class, or the one predicted at most pixels. ``layer`` is a dotted
    name or a module of the model, or None where the model says which. A list of targets or of layers gives
    :class:`Explanations`, question by question and layer by layer, from one forward pass.

    Raises an error of the tree in ``glowmap.errors`` for whatever cannot be explained.
    """
    return Explainer(model, layer=layer)(images, target=target, method=method)


class Explainer:
    """A model and its layers, bound once and asked many times."""

    def __init__(self, model: nn.Module | Model, *, layer: LayerName | Sequence[LayerName] | None = None) -> None:
        self.model = as_model(model)
        self.layers = find_layers(self.model.module, self.model.layer if layer is None else layer)
        self._one_layer = not isinstance(layer, list | tuple)

    def __call__(self, images: Any, *, target: Any = None, method: str = "grad_cam") -> Explanation | Explanations:
        """Explain images, as :func:`explain` does."""
        explanations = self.all(images, target=target, method=method)
        return explanations if isinstance(target, list | tuple) or not self._one_layer else explanations[0]

    def all(self, images: Any, *, target: Any = None, method: str = "grad_cam") -> Explanations:
        """Explain images, and give a sequence also for one question at one layer."""
        chosen = _method(method)
        questions = as_questions(target)
        with torch.inference_mode(False):  # whose tensors autograd may not save
            batch = self.model.read(images)
        explanations = []
        with borrowed(self.model.module) as was_training:
            with record(self.layers) as recording:
                output = _run(self.model.module, batch)
            answer = self._answer(output, batch)
            prediction = _prediction(answer)  # before a target has its hands on the output
            scores = [_score(question, answer) for question in questions]
            shared = {
                "model": self.model.name,
                "input_size": answer.input_size,
                "pictures": batch.pictures,
                "prediction": prediction,
                "notes": (*self.model.notes, *_run_notes(recording, was_training)),
            }
            for number, (question, score) in enumerate(zip(questions, scores, strict=True), 1):
                wordings = tuple(question.wording(answer, image) for image in range(answer.batch))
                evidence = self._evidence(recording, chosen, score, batch.images, keep_graph=number < len(questions))
                explanations += [
                    _explanation(chosen, layer, maps, score, shared | {"targets": wordings})
                    for layer, maps in evidence.items()
                ]
        return Explanations(explanations)

    def _answer(self, output: Any, batch: Batch) -> Answer:
        return Answer(
            output,
            batch=len(batch.images),
            read_logits=read_logits,
            class_names=self.model.class_names,
            input_size=tuple(batch.images.shape[2:]),
            model=self.model.name,
            seen_part=partial(_seen_part, batch.pictures),
        )

    def _evidence(
        self, recording: Recording, method: Method, scores: Scores, images: Images, *, keep_graph: bool
    ) -> dict[str, dict[str, Maps]]:
        """Make the evidence that the method's parameters name, and no other: by layer, then by kind."""
        found = {"activations": {name: recording[name].output.detach() for name in self.layers}}
        if "gradients" in method.needs:
            found["gradients"] = recording.gradients(scores, keep_graph=keep_graph)
        return {
            name: {kind: _wide(lay_out(found[kind][name], name, module, images)) for kind in method.needs}
            for name, module in self.layers.items()
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
        raise ModelError(
            f"{type(module).__name__} raised {told(error)}; "
            f"check that it takes an input of {crossed(batch.images.shape)} "
            f"({str(batch.images.dtype).removeprefix('torch.')} on {batch.images.device})"
        ) from error


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


def _explanation(
    method: Method, layer: str, evidence: dict[str, Maps], scores: Scores, shared: dict[str, Any]
) -> Explanation:
    """Apply the method, refuse what is not finite, and note what a person must know before trusting the map."""
    raw = method.function(**evidence)
    finite = bool(raw.isfinite().all())  # what is not finite in the evidence shows in the map: one small test for three
    if not finite:
        _refuse_not_finite({**evidence, f"{method.name} map": raw}, layer)
    notes = (*shared["notes"], *_map_notes(raw, evidence, layer, shared["targets"]))
    return Explanation(raw, _wide(scores.detach()), layer=layer, method=method.name, **(shared | {"notes": notes}))


def _refuse_not_finite(evidence: dict[str, Tensor], layer: str) -> NoReturn:
    for kind, maps in evidence.items():
        wrong = [str(i) for i, image in enumerate(maps) if not image.isfinite().all()]
        if wrong:
            raise ModelError(
                f"NaN or infinity in the {kind} of layer {layer!r} for image {', '.join(wrong[:10])}; "
                "look for overflow (half precision?), division by zero or damaged weights in the model"
            )
    raise AssertionError("called for a map that is not finite")


def _run_notes(recording: Recording, was_training: bool) -> list[str]:
    training = "the model is in training mode; it was explained in evaluation mode and given back as it was"
    runs = {name: recording[name].calls for name in recording.names}
    notes = [training] if was_training else []
    notes += [
        f"layer {name!r} ran {calls} times; its last run is explained" for name, calls in runs.items() if calls > 1
    ]
    return notes + [
        f"the model runs layer {name!r} under torch.no_grad(); what it computes from it there is missing in the gradients"
        for name in recording.names
        if recording[name].in_no_grad
    ]


def _map_notes(raw: RawMaps, evidence: dict[str, Maps], layer: str, targets: Sequence[str]) -> list[str]:
    """Say why a heatmap is blank, image by image."""
    notes = []
    positive = raw.relu()
    blank, highest = is_flat(positive).tolist(), positive.flatten(1).amax(1).tolist()
    for image, (wording, nothing_shows, high) in enumerate(zip(targets, blank, highest, strict=True)):
        if not nothing_shows:
            continue
        if "gradients" in evidence and not evidence["gradients"][image].any():
            reason = "the score's gradient is zero everywhere there, so this layer cannot move it; try an earlier layer"
        elif high == 0:
            reason = "the raw map has no positive value, so its heatmap is blank: nothing there speaks for it; see .raw"
        else:
            reason = "the raw map has the same value everywhere, so its heatmap is blank"
        where = f"image {image}, " if len(targets) > 1 else ""
        notes.append(f"{where}{wording} at {layer!r}: {reason}")
    return notes


def _wide(values: Tensor) -> Tensor:
    """Leave half precision, whose sums over channels overflow and cancel; double precision stays."""
    return values if values.dtype == torch.float64 else values.float()


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
    return pictures[image].part_of(mask) if pictures else None
