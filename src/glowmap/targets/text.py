"""Questions about words: how well a sentence fits a picture, in the model's own terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

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

    Raises TargetError for an empty sentence, and where the model takes no texts.
    """

    text: str | None = None
    prompt: str | None = None
    word: int | str | None = None
    each_word: bool = False
    against: Sequence[str] = ()

    def __post_init__(self) -> None:
        others = (self.against,) if isinstance(self.against, str) else tuple(self.against)
        object.__setattr__(self, "against", others)  # as one that can be told from others by its hash
        for name, sentence in (("text", self.text), ("prompt", self.prompt), *(("against", one) for one in others)):
            _check(name, sentence)
        if others and self.text is None:
            raise TargetError(f"against {others[0]!r} stands no sentence; give one: targets.Text('...', against=...)")
        if self.text in others:
            raise TargetError(f"{self.text!r} is set against itself, which is nothing; leave it out of against=...")

    def score(self, answer: Answer) -> NoReturn:
        raise TargetError(
            f"{answer.model} takes no text that glowmap could give it; load a model of pictures and texts by name, or with its "
            "processor: glowmap.load(module, processor=...)"
        )

    def wording(self, answer: Answer, image: int) -> str:
        return repr(self.text) if self.text is not None else "what the model says"


def _check(name: str, sentence: Any) -> None:
    if sentence is None and name != "against":
        return
    if not isinstance(sentence, str):
        raise TargetError(f"{name} is a sentence, not {type(sentence).__name__}; for several give a list of questions")
    if not sentence.strip():
        raise TargetError(f"{name} is an empty sentence; give words")
