"""Questions about words: how well a sentence fits a picture, in the model's own terms."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.outputs import ModelOutput
from glowmap.shapes import Scores


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
            raise TargetError(
                f"against {others[0]!r} stands no sentence",
                remedy=Remedy("give one: targets.Text('...', against=...)", "give one: --text SENTENCE"),
            )
        if self.text in others:
            raise TargetError(
                f"{self.text!r} is set against itself, which is nothing",
                remedy=Remedy("leave it out of against=...", "leave it out of --against"),
            )
        _check_word(self.word)
        if not isinstance(self.each_word, bool):
            raise TargetError(
                f"each_word is True or False, not {self.each_word!r}",
                remedy=Remedy("for one word give word=...", "for one word give --word WORD"),
            )
        if self.each_word and self.word is not None:
            raise TargetError(
                f"the word {self.word!r} is one word, and each_word asks about all; leave one of them out"
            )

    def score(self, answer: ModelOutput) -> NoReturn:
        raise TargetError(
            f"{answer.model} takes no text that glowmap could give it",
            remedy=Remedy(
                "load a model of pictures and texts by name, or with its "
                "processor: glowmap.load(module, processor=...)",
                "load a model of pictures and texts by name: --model hf/NAME or open_clip/NAME",
            ),
        )

    def describe(self, answer: ModelOutput, image: int) -> str:
        return repr(self.text) if self.text is not None else "what the model says"


def _sentences(against: Any) -> tuple[Any, ...]:
    if isinstance(against, list | tuple):
        return tuple(against)
    if isinstance(against, str):
        return (against,)
    raise TargetError(f"against is a sentence or a list of them, not {type(against).__name__}; leave it out for none")


def _check_word(word: Any) -> None:
    if word is None or is_whole_number(word):
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


@dataclass(frozen=True)
class TokenSpan:
    """Some words of a sentence: their tokens, and the places of the text at which the logits speak of each.

    A place is counted from the text's end, from -1; ``word`` is the one that is asked about, or None for the whole sentence.
    """

    sentence: str
    tokens: tuple[int, ...]
    places: tuple[int, ...]
    word: str | None = None


@dataclass(frozen=True)
class TokenLogProbability:
    """Words that a model writes, or would have to: the sum of the log-probabilities of their tokens, given the words before.

    One :class:`TokenSpan` for all images, or one for each. The log-probabilities are over the whole vocabulary, in float32 or
    wider;
    their sum over a sentence is the log-probability of the sentence, of which Selvaraju et al. take Grad-CAM for a caption (ICCV
    2017, arXiv:1610.02391, on image captioning). The token that ends a sentence is not among them. Raises TargetError where the
    model says no words, or has not so many in its vocabulary.
    """

    spoken: tuple[TokenSpan, ...]
    prompt: str | None = None  # what they answer, where a caption is to say so

    def score(self, answer: ModelOutput) -> Scores:
        logits = answer.token_logits
        return torch.stack([_summed(logits[image], self._of(answer, image)) for image in range(answer.batch)])

    def describe(self, answer: ModelOutput, image: int) -> str:
        one = self._of(answer, image)
        said = repr(one.sentence) if one.word is None else f"{one.word!r} in {one.sentence!r}"
        return said if self.prompt is None else f"{said} to {self.prompt!r}"

    def pin(self, answer: ModelOutput, image: int) -> "TokenLogProbability":
        return replace(self, spoken=(self._of(answer, image),))

    def _of(self, answer: ModelOutput, image: int) -> TokenSpan:
        if len(self.spoken) == 1:
            return self.spoken[0]
        if answer.image is not None and answer.image < len(self.spoken):  # cut down to one image of the batch
            return self.spoken[answer.image]
        if len(self.spoken) != answer.batch:
            raise TargetError(
                f"{len(self.spoken)} images have words of their own, and {answer.batch} are asked about; "
                "explain the images one by one"
            )
        return self.spoken[image]


def _summed(logits: Tensor, spoken: TokenSpan) -> Tensor:
    """Sum log-probabilities: ``logits`` are place x vocabulary."""
    vocabulary = logits.shape[-1]
    if max(spoken.tokens) >= vocabulary:
        raise TargetError(
            f"{spoken.sentence!r} has the token {max(spoken.tokens)}, and the model knows {vocabulary}; give the tokenizer or "
            "processor that belongs to this model"
        )
    at = logits[list(spoken.places)]
    told = (at if at.dtype == torch.float64 else at.float()).log_softmax(-1)
    return told[torch.arange(len(spoken.tokens)), list(spoken.tokens)].sum()
