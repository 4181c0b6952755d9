"""Questions made ready before the model runs: texts put beside the pictures, other pictures embedded, parts to be watched."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glowmap.capture import call_model
from glowmap.errors import Remedy, TargetError
from glowmap.evidence.watching import with_layer_outputs
from glowmap.inputs import Batch
from glowmap.models import Model, TextPass
from glowmap.targets import Target, for_detector, for_text_generator, replace_texts, texts_in


@dataclass(frozen=True)
class Prepared:
    """Questions that one forward pass answers, each with its number in the order in which they were asked."""

    model: Model
    batch: Batch
    targets: tuple[tuple[int, Target], ...]


def prepared(model: Model, batch: Batch, questions: Sequence[Target]) -> list[Prepared]:
    """Make questions ready for a (borrowed) model: as many forward passes as the texts in them need, mostly one."""
    asked = [question.prepare(partial(_embed, model, batch)) for question in questions]
    if model.readers.are_detections:  # a detector says first what it is surest of
        asked = [for_detector(target) for target in asked]
    if model.text_interface is None:
        return [Prepared(_watching(model, batch, asked), batch, tuple(enumerate(asked)))]
    if model.text_interface.generates:
        asked = [for_text_generator(target) for target in asked]
    return _heard(model, batch, asked)


def _heard(model: Model, batch: Batch, questions: Sequence[Target]) -> list[Prepared]:
    """Put the texts in the questions beside the pictures; those without any go with the first pass."""
    assert model.text_interface is not None
    texts = [texts_in(question) for question in questions]
    several = model.text_interface.passes(model, batch, list(dict.fromkeys(text for group in texts for text in group)))
    if several:
        _refuse_unasked(model, batch, several, [one for one, own in zip(questions, texts, strict=True) if not own])
    passes: dict[int, list[tuple[int, Target]]] = {}
    for number, (question, own) in enumerate(zip(questions, texts, strict=True)):
        at = next((at for at, heard in enumerate(several) if set(own) <= set(heard.targets)), None)
        if at is None and own:
            named = " and ".join(repr(one.text) if one.text else "what it says itself" for one in own)
            raise TargetError(
                f"{model.name} reads each text in a pass of its own, so {named} cannot be part of one question",
                remedy=Remedy("ask for each by itself: target=[..., ...]", "ask for each by itself: a --text for each"),
            )
        put = several[at].targets if at is not None and several else {}
        passes.setdefault(at or 0, []).extend((number, one) for one in replace_texts(question, put))
    if not several:
        return [Prepared(_watching(model, batch, questions), batch, tuple(passes[0]))]
    return [
        Prepared(
            _watching(
                several[at].model,
                several[at].batch,
                [question for _, question in group],
            ),
            several[at].batch,
            tuple(group),
        )
        for at, group in sorted(passes.items())
    ]


def _refuse_unasked(model: Model, batch: Batch, several: Sequence[TextPass], questions: Sequence[Target]) -> None:
    """Refuse questions without a text that would read an answer to words which nobody, or another question, put."""
    assert model.text_interface is not None
    calls = any(target.reads_raw_output for target in questions)
    if not (calls or any(target.reads_class_scores for target in questions)):
        return
    what = "a callable" if calls else "a class"
    if model.text_interface.generates:
        raise TargetError(
            f"{model.name} writes words and has no classes: {what} would read the logits of a word after others that nobody put "
            "there",
            remedy=Remedy(
                "ask target=targets.Text('a dog'), or give a dict of the model's keywords with the words in it",
                "ask --text 'a dog'",
            ),
        )
    if any(not set(several[0].targets) <= set(heard.targets) for heard in several[1:]):
        raise TargetError(
            f"{model.name} reads each text of this call in a pass of its own, and {what} does not say whose answer is meant; ask "
            "about it in a call with one text"
        )
    if calls and any(heard.model.class_names == () and heard.batch is not batch for heard in several):
        raise TargetError(
            f"{model.name} takes no picture without a text, and a callable would read its answer to one that nobody asked about",
            remedy=Remedy(
                "ask target=targets.Text('a photo of a dog'), or give a dict of the model's keywords with the texts in it",
                "ask --text 'a photo of a dog'",
            ),
        )


def _embed(model: Model, batch: Batch, picture: Any) -> Tensor:
    """Compute the model's embedding of another picture, 1 x feature."""
    if model.text_interface is not None and model.text_interface.generates:
        raise TargetError(
            f"{model.name} writes words and embeds no picture by itself; ask about likeness to the part of it that sees (its "
            "vision tower), or take a model that embeds pictures"
        )
    given = picture
    if len(batch.arguments) + len(batch.keywords) > 1:  # whatever else the model takes stays as it is
        given = tuple(picture if one is batch.images else one for one in batch.arguments) or {
            name: picture if one is batch.images else one for name, one in batch.keywords.items()
        }
    other = model.read(given)
    if model.text_interface is not None:  # it may take no picture without a text
        other = next((heard.batch for heard in model.text_interface.passes(model, other, [])), other)
    with torch.no_grad(), model.around_forward(model.module):
        return model.read_output(call_model(model.module, other), other).embedding.detach()


def _watching(model: Model, batch: Batch, questions: Sequence[Target]) -> Model:
    """Have the layers watched that the questions read."""
    names = {name for target in questions for name in target.needs_layers()}
    return with_layer_outputs(model, batch, sorted(names)) if names else model
