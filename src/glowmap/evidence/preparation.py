"""Prepare targets before the model runs: add texts to the input, embed other pictures, and keep the layers that are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glowmap.capture import call_model
from glowmap.errors import Remedy, TargetError
from glowmap.evidence.layer_outputs import with_layer_outputs
from glowmap.inputs import Batch
from glowmap.models import Model, TextPass
from glowmap.targets import Target, for_detector, for_text_generator, replace_texts, texts_in


@dataclass(frozen=True)
class Prepared:
    """A forward pass and the targets that it scores, each with its number among all targets."""

    model: Model
    batch: Batch
    targets: tuple[tuple[int, Target], ...]


def prepared(model: Model, batch: Batch, targets: Sequence[Target]) -> list[Prepared]:
    """Prepare targets for a borrowed model. Returns the forward passes that score them: one, or as many as their texts need.

    Raises TargetError for a target that the model cannot score.
    """
    targets = [target.prepare(partial(_embed, model, batch)) for target in targets]
    if model.readers.are_detections:  # the prediction of a detector is its surest detection
        targets = [for_detector(target) for target in targets]
    if model.text_interface is None:
        return [_forward_pass(model, batch, list(enumerate(targets)))]
    if model.text_interface.generates:
        targets = [for_text_generator(target) for target in targets]
    return _with_texts(model, batch, targets)


def _forward_pass(model: Model, batch: Batch, targets: Sequence[tuple[int, Target]]) -> Prepared:
    """Return a pass of the model, which keeps the outputs of the layers that the targets read."""
    names = {name for _, target in targets for name in target.needs_layers()}
    model = with_layer_outputs(model, batch, sorted(names)) if names else model
    return Prepared(model, batch, tuple(targets))


def _with_texts(model: Model, batch: Batch, targets: Sequence[Target]) -> list[Prepared]:
    """Return the passes with the targets' texts in the input; targets without a text belong to the first."""
    assert model.text_interface is not None
    texts = [texts_in(target) for target in targets]
    unique_texts = list(dict.fromkeys(text for group in texts for text in group))
    text_passes = model.text_interface.passes(model, batch, unique_texts)
    if text_passes:
        without_text = [target for target, group in zip(targets, texts, strict=True) if not group]
        _refuse_ambiguous(model, batch, text_passes, without_text)
    by_pass: dict[int, list[tuple[int, Target]]] = {}
    for number, (target, group) in enumerate(zip(targets, texts, strict=True)):
        index = next((index for index, known in enumerate(text_passes) if set(group) <= set(known.targets)), None)
        if index is None and group:
            named = " and ".join(repr(text.text) if text.text else "the model's own text" for text in group)
            raise TargetError(
                f"{model.name} reads each text in a separate pass, so {named} cannot be part of one target",
                remedy=Remedy("give each as a target: target=[..., ...]", "give each as a target: a --text for each"),
            )
        replacements = {} if index is None else text_passes[index].targets
        by_pass.setdefault(index or 0, []).extend((number, scored) for scored in replace_texts(target, replacements))
    if not text_passes:
        return [_forward_pass(model, batch, by_pass[0])]
    return [
        _forward_pass(text_passes[index].model, text_passes[index].batch, group)
        for index, group in sorted(by_pass.items())
    ]


def _refuse_ambiguous(model: Model, batch: Batch, text_passes: Sequence[TextPass], targets: Sequence[Target]) -> None:
    """Raise TargetError for targets without a text that would read the output for a text that is not theirs."""
    assert model.text_interface is not None
    has_callable = any(target.reads_raw_output for target in targets)
    if not (has_callable or any(target.reads_class_scores for target in targets)):
        return
    kind = "a callable" if has_callable else "a class"
    if model.text_interface.generates:
        raise TargetError(
            f"{model.name} writes words and has no classes: {kind} would read the logits of a word after words that are not "
            "given",
            remedy=Remedy(
                "give target=targets.Text('a dog'), or give a dict of the model's keywords with the words in it",
                "give --text 'a dog'",
            ),
        )
    if any(not set(text_passes[0].targets) <= set(text_pass.targets) for text_pass in text_passes[1:]):
        raise TargetError(
            f"{model.name} reads each text of this call in a separate pass, and {kind} does not say which pass is meant; "
            "explain it in a call with one text"
        )
    if has_callable and any(known.model.class_names == () and known.batch is not batch for known in text_passes):
        raise TargetError(
            f"{model.name} takes no picture without a text, and a callable would read its output for a text that was not given",
            remedy=Remedy(
                "give target=targets.Text('a photo of a dog'), or give a dict of the model's keywords with the texts in it",
                "give --text 'a photo of a dog'",
            ),
        )


def _embed(model: Model, batch: Batch, picture: Any) -> Tensor:
    """Compute the model's embedding of another picture, 1 x feature."""
    if model.text_interface is not None and model.text_interface.generates:
        raise TargetError(
            f"{model.name} writes words and embeds no picture by itself; choose the likeness to a picture as the target of its "
            "vision tower, or take a model that embeds pictures"
        )
    inputs = picture
    if len(batch.arguments) + len(batch.keywords) > 1:  # all other inputs of the model stay as they are
        inputs = tuple(picture if value is batch.images else value for value in batch.arguments) or {
            name: picture if value is batch.images else value for name, value in batch.keywords.items()
        }
    other = model.read(inputs)
    if model.text_interface is not None:  # the model may take no picture without a text
        passes = model.text_interface.passes(model, other, [])
        other = passes[0].batch if passes else other
    with torch.no_grad(), model.around_forward(model.module):
        return model.read_output(call_model(model.module, other), other).embedding.detach()
