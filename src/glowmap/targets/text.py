"""Targets about texts: how well a sentence fits the picture, as the model itself scores it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.outputs import ModelOutput
from glowmap.shapes import Scores
from glowmap.targets._target import Target


@dataclass(frozen=True)
class Text(Target):
    """A sentence: how well it fits the picture, as the model itself scores it.

    - Models that compare pictures with texts (CLIP, SigLIP): the similarity, scaled as the model's logits are; with ``against``,
      the difference from the mean similarity of these other sentences.
    - Models that match a picture and a text: the logit of a match.
    - Models that write (captions, answers, chats): the sum of the log-probabilities of the sentence's words, given the picture
      and the ``prompt``, a question or an instruction. Without a ``text``, the sentence that the model writes. ``word`` selects
      one word, by its number from 0 or as it is written. ``each_word`` gives a map of the sentence and one of each word.

    Raises TargetError for an empty sentence, for what is no sentence or no word, and for a model that takes no texts.
    """

    text: str | None = None
    prompt: str | None = None
    word: int | str | None = None
    each_word: bool = False
    against: Sequence[str] = ()

    def __post_init__(self) -> None:
        others = _sentences(self.against)
        object.__setattr__(self, "against", others)  # a tuple can be hashed
        for field, sentence in (
            ("text", self.text),
            ("prompt", self.prompt),
            *(("against", other) for other in others),
        ):
            _check_sentence(field, sentence)
        if others and self.text is None:
            raise TargetError(
                f"no sentence is set against {others[0]!r}",
                remedy=Remedy("give one: targets.Text('...', against=...)", "give one: --text SENTENCE"),
            )
        if self.text in others:
            raise TargetError(
                f"{self.text!r} is set against itself, which gives zero",
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
                f"the word {self.word!r} is one word, and each_word is all of them; leave one of them out"
            )

    def score(self, output: ModelOutput) -> NoReturn:
        raise TargetError(
            f"glowmap knows no way to give {output.model} a text",
            remedy=Remedy(
                "load a model of pictures and texts by name, or with its processor: glowmap.load(module, processor=...)",
                "load a model of pictures and texts by name: --model hf/NAME or open_clip/NAME",
            ),
        )

    def describe(self, output: ModelOutput, image: int) -> str:
        return repr(self.text) if self.text is not None else "what the model says"


def for_text_generator(target: Target) -> Target:
    """Replace the model's own prediction in a target by the sentence that it writes."""
    return target.replace_prediction(lambda category: Text() if category is None else category)


def texts_in(target: Target) -> list[Text]:
    """Return the texts that a target is, or is made of."""
    return [leaf for leaf in target.leaves() if isinstance(leaf, Text)]


def replace_texts(target: Target, replacements: Mapping[Text, Sequence[Target]]) -> list[Target]:
    """Replace the texts in a target by the targets that score them; a text alone may become several targets."""
    if isinstance(target, Text):
        return list(replacements[target])
    if any(text.each_word for text in texts_in(target)):
        raise TargetError(
            "each_word makes a target of each word, and these cannot be part of one target",
            remedy=Remedy("give one word: word=...", "give one word: --word WORD"),
        )
    return [target.map_leaves(lambda leaf: replacements[leaf][0] if isinstance(leaf, Text) else leaf)]


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
            f"word is its number from 0, or the word as it is written, not {word!r}; for several words give a list of targets"
        )
    if not word.strip():
        raise TargetError("word is empty; give the word as it is written, or its number from 0")


def _check_sentence(field: str, sentence: Any) -> None:
    if sentence is None and field != "against":
        return
    if not isinstance(sentence, str):
        raise TargetError(f"{field} is a sentence, not {type(sentence).__name__}; for several give a list of targets")
    if not sentence.strip():
        raise TargetError(f"{field} is an empty sentence; give words")


@dataclass(frozen=True)
class TokenSpan:
    """Some words of a sentence: their tokens, and the position in the text whose logits predict each of them.

    Positions are counted from the end of the text, from -1. ``word`` is the word of the target, None for the whole sentence.
    """

    sentence: str
    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    word: str | None = None


@dataclass(frozen=True)
class TokenLogProbability(Target):
    """The sum of the log-probabilities of the tokens of some words, each given the picture, the prompt and the tokens before.

    ``spans`` is one :class:`TokenSpan` for all images, or one for each. The log-probabilities are over the whole vocabulary, in
    float32 or wider; their sum over a sentence is the log-probability of the sentence, of which Selvaraju et al. take Grad-CAM
    for a caption (ICCV 2017, arXiv:1610.02391, on image captioning). The token that ends the sentence does not count. Raises
    TargetError for a model that writes nothing, and for a token beyond its vocabulary.
    """

    spans: tuple[TokenSpan, ...]
    prompt: str | None = None  # for the description

    def score(self, output: ModelOutput) -> Scores:
        logits = output.token_logits
        return torch.stack(
            [_log_probability(logits[image], self._span(output, image)) for image in range(output.batch)]
        )

    def describe(self, output: ModelOutput, image: int) -> str:
        span = self._span(output, image)
        words = repr(span.sentence) if span.word is None else f"{span.word!r} in {span.sentence!r}"
        return words if self.prompt is None else f"{words} to {self.prompt!r}"

    def pin(self, output: ModelOutput, image: int) -> "TokenLogProbability":
        return replace(self, spans=(self._span(output, image),))

    def _span(self, output: ModelOutput, image: int) -> TokenSpan:
        if len(self.spans) == 1:
            return self.spans[0]
        if output.image is not None and output.image < len(
            self.spans
        ):  # the output is cut down to one image of the batch
            return self.spans[output.image]
        if len(self.spans) != output.batch:
            raise TargetError(
                f"there are words for {len(self.spans)} images, and the batch has {output.batch}; explain the images one by one"
            )
        return self.spans[image]


def _log_probability(logits: Tensor, span: TokenSpan) -> Tensor:
    """Return the sum of the log-probabilities of a span's tokens; ``logits`` are position x vocabulary."""
    vocabulary = logits.shape[-1]
    if max(span.tokens) >= vocabulary:
        raise TargetError(
            f"{span.sentence!r} has the token {max(span.tokens)}, and the vocabulary of the model ends at {vocabulary - 1}; give "
            "the tokenizer or processor that belongs to this model"
        )
    log_probabilities = tree.full_precision(logits[list(span.positions)]).log_softmax(-1)
    return log_probabilities[torch.arange(len(span.tokens)), list(span.tokens)].sum()
