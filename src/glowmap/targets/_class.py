"""What a question about a class is: a score read off the class scores, in the same way at every place."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import Remedy, TargetError
from glowmap.outputs import ModelOutput
from glowmap.shapes import PixelSets, Scores
from glowmap.targets._target import in_images, of_nothing


class ClassQuestion(ABC):
    """A question about one class of each image: ``read`` says what is read off the class scores, at each place by itself.

    As a target by itself it is what is read of a classifier's scores, and of a dense model's the sum over the pixels predicted
    as its class (Vinogradova et al. 2020, arXiv:2002.11434, eq. 2). Others ask it elsewhere: ``Pixels`` at a set of pixels, and
    questions about a detection of that detection's class scores.
    """

    @abstractmethod
    def chosen(self, answer: ModelOutput, image: int) -> int:
        """Tell the class that an image is asked about, as an index. TargetError for a class that is none."""

    def indices(self, answer: ModelOutput) -> Tensor:
        """Tell the class that each image is asked about: one axis, the batch."""
        return torch.tensor([self.chosen(answer, image) for image in range(answer.batch)])

    def read(self, logits: Tensor, answer: ModelOutput) -> Tensor:
        """Read the score off class scores: batch x class (x places) become batch (x places), in the graph of the pass."""
        return logits[torch.arange(len(logits)), self.indices(answer).to(logits.device)]

    def named(self, answer: ModelOutput, image: int) -> str:
        """Name what is asked of an image: "car", "car rather than bus"."""
        return answer.name(self.chosen(answer, image))

    def fixed(self, answer: ModelOutput, image: int) -> "ClassQuestion":
        """Put it to one image alone, with the classes and weights fixed that depend on the model's answer to it."""
        return self

    def doubts(self, answer: ModelOutput, places: PixelSets | None = None) -> Sequence[str]:
        """Say what to mind of the score, of a dense model at these places."""
        return ()

    def inside(self, answer: ModelOutput) -> PixelSets:
        """Tell the pixels that a dense model is asked about where no others are named: those predicted as the class."""
        return predicted(answer, self.indices(answer))

    def score(self, answer: ModelOutput) -> Scores:
        if answer.logits.ndim > 2:
            return score_at(self, answer, self.inside(answer))
        return self.read(answer.logits, answer)

    def describe(self, answer: ModelOutput, image: int) -> str:
        return self.named(answer, image)

    def pin(self, answer: ModelOutput, image: int) -> "ClassQuestion | PinnedPixels":
        one = self.fixed(answer, image)
        if answer.logits.ndim == 2:
            return one
        return PinnedPixels(one, self.inside(answer)[image], called=self.describe(answer, image))


@dataclass(frozen=True)
class PinnedPixels:
    """A question about a class at a fixed set of places of the output, and ``around`` it where it is set off from these.

    The sets are as large as the output, for all images alike. This is what questions become that are put again.
    """

    question: ClassQuestion
    places: Tensor
    around: Tensor | None = None
    called: str = ""

    def score(self, answer: ModelOutput) -> Scores:
        return score_at(self.question, answer, self.places, self.around)

    def describe(self, answer: ModelOutput, image: int) -> str:
        return self.called or self.question.named(answer, image)


def predicted(answer: ModelOutput, indices: Tensor) -> PixelSets:
    """Find the pixels of each image that are predicted as its class. Raises TargetError where there are none."""
    found: Tensor = answer.labels == indices.to(answer.labels.device).reshape(-1, *[1] * (answer.labels.ndim - 1))
    empty = of_nothing(found)
    if empty:
        raise TargetError(
            f"no pixel is predicted as {answer.name(int(indices[empty[0]]))!r}{in_images(empty, found)}",
            remedy=Remedy(
                f"ask for a class that is there ({there(answer, empty[0])}), or give a mask: targets.Pixels(class, mask)",
                f"ask for a class that is there ({there(answer, empty[0])}), or about what is predicted at a pixel: --at X,Y",
            ),
        )
    return found


def there(answer: ModelOutput, image: int = 0) -> str:
    """Name the classes that a dense model predicts in an image, with the share of the pixels of each."""
    labels = answer.labels[image]
    shares = [f"{answer.name(i)} {(labels == i).float().mean():.1%}" for i in answer.present(image)[:5]]
    return ", ".join(shares) or "none"


def score_at(question: ClassQuestion, answer: ModelOutput, places: Tensor, around: Tensor | None = None) -> Scores:
    """Sum what is read over a set of places; or, where it is set off from those ``around``, subtract the means of both."""
    values = tree.full_precision(question.read(answer.logits, answer))
    if around is None:
        return (values * places).flatten(1).sum(1)
    return _mean(values, places) - _mean(values, around)


def _mean(values: Tensor, places: Tensor) -> Scores:
    counted: Tensor = places.expand_as(values).flatten(1).sum(1)
    return (values * places).flatten(1).sum(1) / counted
