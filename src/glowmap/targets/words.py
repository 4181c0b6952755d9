"""Questions about words that a model writes: how likely it finds them, given the picture and the words before."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.shapes import Scores
from glowmap.targets._answer import Answer


@dataclass(frozen=True)
class Spoken:
    """Some words of a sentence: their tokens, and the places of the text at which the logits speak of each.

    A place is counted from the text's end, from -1; ``word`` is the one that is asked about, or None for the whole sentence.
    """

    sentence: str
    tokens: tuple[int, ...]
    places: tuple[int, ...]
    word: str | None = None


@dataclass(frozen=True)
class Words:
    """Words that a model writes, or would have to: the sum of the log-probabilities of their tokens, given the words before.

    One :class:`Spoken` for all images, or one for each. The log-probabilities are over the whole vocabulary, in float32 or wider;
    their sum over a sentence is the log-probability of the sentence, of which Selvaraju et al. take Grad-CAM for a caption (ICCV
    2017, arXiv:1610.02391, on image captioning). The token that ends a sentence is not among them. Raises TargetError where the
    model says no words, or has not so many in its vocabulary.
    """

    spoken: tuple[Spoken, ...]
    prompt: str | None = None  # what they answer, where a caption is to say so

    def score(self, answer: Answer) -> Scores:
        logits = answer.words
        return torch.stack([_summed(logits[image], self._of(answer, image)) for image in range(answer.batch)])

    def wording(self, answer: Answer, image: int) -> str:
        one = self._of(answer, image)
        said = repr(one.sentence) if one.word is None else f"{one.word!r} in {one.sentence!r}"
        return said if self.prompt is None else f"{said} to {self.prompt!r}"

    def settled(self, answer: Answer, image: int) -> "Words":
        return replace(self, spoken=(self._of(answer, image),))

    def _of(self, answer: Answer, image: int) -> Spoken:
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


def _summed(logits: Tensor, spoken: Spoken) -> Tensor:
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
