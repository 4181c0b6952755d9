"""Questions about words: how well a sentence fits a picture, in the model's own terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from glowmap.errors import TargetError
from glowmap.targets._answer import Answer


@dataclass(frozen=True)
class Text:
    """A sentence: how well it fits the picture, as the model itself judges it.

    For models that compare pictures and texts (CLIP, SigLIP) its likeness to the picture, scaled as the model's logits are, or
    with ``against`` how much likelier than other sentences it is, in the mean; for those that match them, the logit of a match;
    for those that write (captions, answers, chats) the sum of the log-probabilities of its words, given the picture
    and the ``prompt``, which is what the model is asked beside. Without a ``text``, what the model itself says. ``word`` asks
    about one word alone, by its place from 0 or as it is written; ``each_word`` for a map of the sentence and one of each word.

    Raises TargetError for an empty sentence, for what is no sentence or no word, and where the model takes no texts.
    """

    text: str | None = None
    prompt: str | None = None
    word: int | str | None = None
    each_word: bool = False
    against: Sequence[str] = ()

    def __post_init__(self) -> None:
        others = _sentences(self.against)
        object.__setattr__(self, "against", others)  # as one that can be told from others by its hash
        for name, sentence in (("text", self.text), ("prompt", self.prompt), *(("against", one) for one in others)):
            _check(name, sentence)
        if others and self.text is None:
            raise TargetError(f"against {others[0]!r} stands no sentence; give one: targets.Text('...', against=...)")
        if self.text in others:
            raise TargetError(f"{self.text!r} is set against itself, which is nothing; leave it out of against=...")
        _check_word(self.word)
        if not isinstance(self.each_word, bool):
            raise TargetError(f"each_word is True or False, not {self.each_word!r}; for one word give word=...")
        if self.each_word and self.word is not None:
            raise TargetError(
                f"word={self.word!r} asks about one word, and each_word=True about all; leave one of them out"
            )

    def score(self, answer: Answer) -> NoReturn:
        raise TargetError(
            f"{answer.model} takes no text that glowmap could give it; load a model of pictures and texts by name, or with its "
            "processor: glowmap.load(module, processor=...)"
        )

    def wording(self, answer: Answer, image: int) -> str:
        return repr(self.text) if self.text is not None else "what the model says"


def _sentences(against: Any) -> tuple[Any, ...]:
    if isinstance(against, list | tuple):
        return tuple(against)
    if isinstance(against, str):
        return (against,)
    raise TargetError(f"against is a sentence or a list of them, not {type(against).__name__}; leave it out for none")


def _check_word(word: Any) -> None:
    if word is None or (isinstance(word, int | np.integer) and not isinstance(word, bool)):
        return
    if not isinstance(word, str):
        raise TargetError(
            f"a word is its place from 0 or as it is written, not {word!r}; for several give a list of questions"
        )
    if not word.strip():
        raise TargetError("word is empty; give one as it is written, or its place from 0")


def _check(name: str, sentence: Any) -> None:
    if sentence is None and name != "against":
        return
    if not isinstance(sentence, str):
        raise TargetError(f"{name} is a sentence, not {type(sentence).__name__}; for several give a list of questions")
    if not sentence.strip():
        raise TargetError(f"{name} is an empty sentence; give words")
