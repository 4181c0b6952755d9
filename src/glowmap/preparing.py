"""Questions made ready before the model runs: texts put beside the pictures, other pictures embedded, parts to be watched."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.capture import opened
from glowmap.errors import TargetError
from glowmap.forward import called
from glowmap.images import Batch
from glowmap.layers import find_layers
from glowmap.models import Model
from glowmap.targets import Predicted, Target, Text, changed, leaves


@dataclass(frozen=True)
class Prepared:
    """Questions that one forward pass answers, each with its number in the order in which they were asked."""

    model: Model
    batch: Batch
    questions: tuple[tuple[int, Target], ...]


def prepared(model: Model, batch: Batch, questions: Sequence[Target]) -> list[Prepared]:
    """Make questions ready for a (borrowed) model: as many forward passes as the texts in them need, mostly one."""
    asked = [changed(question, lambda one: _embedded(model, batch, one)) for question in questions]
    if model.speaker is None:
        return [Prepared(_watching(model, asked), batch, tuple(enumerate(asked)))]
    if model.speaker.generates:
        asked = [Text() if isinstance(question, Predicted) else question for question in asked]
    return _heard(model, batch, asked)


def _heard(model: Model, batch: Batch, questions: Sequence[Target]) -> list[Prepared]:
    """Put the texts in the questions beside the pictures; those without any go with the first pass."""
    assert model.speaker is not None
    texts = [_texts(question) for question in questions]
    several = model.speaker.heard(model, batch, list(dict.fromkeys(text for group in texts for text in group)))
    passes: dict[int, list[tuple[int, Target]]] = {}
    for number, (question, own) in enumerate(zip(questions, texts, strict=True)):
        at = next((at for at, heard in enumerate(several) if set(own) <= set(heard.targets)), None)
        if at is None and own:
            raise TargetError(
                f"{model.name} reads each text in a pass of its own, so {' and '.join(repr(one.text) for one in own)} cannot "
                "be part of one question; ask for each by itself: target=[..., ...]"
            )
        put = several[at].targets if at is not None and several else {}
        passes.setdefault(at or 0, []).extend((number, one) for one in _as_heard(question, put))
    if not several:
        return [Prepared(_watching(model, questions), batch, tuple(passes[0]))]
    return [
        Prepared(
            _watching(
                replace(
                    model,
                    class_names=several[at].class_names or model.class_names,
                    opened=_both(model.opened, several[at].opened),
                ),
                [question for _, question in group],
            ),
            several[at].batch,
            tuple(group),
        )
        for at, group in sorted(passes.items())
    ]


def _texts(question: Target) -> list[Text]:
    return [one for one in leaves(question) if isinstance(one, Text)]


def _as_heard(question: Target, put: Any) -> list[Target]:
    """Exchange the texts in a question for what they became; a text by itself may become several questions."""
    if isinstance(question, Text):
        return list(put[question])
    return [changed(question, lambda one: put[one][0] if isinstance(one, Text) else one)]


def _embedded(model: Model, batch: Batch, question: Target) -> Target:
    """Tell a question about another picture what the model makes of that picture."""
    prepare = getattr(question, "prepared", None)
    if prepare is None:
        return question

    def embed(picture: Any) -> Tensor:
        other = model.read(picture)
        with torch.no_grad():
            return model.answer(called_opened(model, other), other).embedding.detach()

    made: Target = prepare(embed)
    return made


def called_opened(model: Model, batch: Batch) -> Any:
    """Call a (borrowed) model with its parts watched."""
    with model.opened(model.module):
        return called(model.module, batch)


def _watching(model: Model, questions: Sequence[Target]) -> Model:
    """Have the layers watched that the questions read."""
    names = {
        name for question in questions for one in leaves(question) for name in getattr(one, "watches", lambda: ())()
    }
    if not names:
        return model
    parts = {
        name: (part, lambda _arguments, _keywords, output: output)
        for name, part in find_layers(model.module, sorted(names)).items()
    }
    return replace(model, opened=_both(model.opened, lambda module: opened(module, parts)))


def _both(one: Any, other: Any) -> Any:
    @contextmanager
    def entered(module: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            contexts: list[AbstractContextManager[None]] = [one(module), other(module)]
            for context in contexts:
                stack.enter_context(context)
            yield

    return entered
