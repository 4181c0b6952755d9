"""Questions about words: how well a sentence fits a picture, in the model's own terms."""

from dataclasses import dataclass
from typing import NoReturn

from glowmap.errors import TargetError
from glowmap.targets._answer import Answer


@dataclass(frozen=True)
class Text:
    """A sentence: how well it fits the picture, as the model itself judges it.

    For models that compare pictures and texts (CLIP, SigLIP) its likeness to the picture; for those that match them, the logit
    of a match; for those that write (captions, answers, chats) the sum of the log-probabilities of its words, given the picture
    and the ``prompt``, which is what the model is asked beside. Without a ``text``, what the model itself says. ``word`` asks
    about one word alone, by its place from 0 or as it is written; ``each_word`` for a map of the sentence and one of each word.
    """

    text: str | None = None
    prompt: str | None = None
    word: int | str | None = None
    each_word: bool = False

    def score(self, answer: Answer) -> NoReturn:
        raise TargetError(
            f"{answer.model} takes no text that glowmap could give it; load a model of pictures and texts by name, or with its "
            "processor: glowmap.load(module, processor=...)"
        )

    def wording(self, answer: Answer, image: int) -> str:
        return repr(self.text) if self.text is not None else "what the model says"
