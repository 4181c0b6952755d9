"""Questions about a class."""

from dataclasses import dataclass

import torch

from glowmap.shapes import Scores
from glowmap.targets._answer import Answer
from glowmap.targets.pixels import Pixels, summed


@dataclass(frozen=True)
class Category:
    """A class, by index or name: its logit; for a dense model its logits summed over the pixels predicted as this class."""

    category: int | str

    def score(self, answer: Answer) -> Scores:
        index = answer.index(self.category)
        if answer.logits.ndim > 2:
            return Pixels(index).score(answer)
        return answer.logits[:, index]

    def wording(self, answer: Answer, image: int) -> str:
        return answer.name(answer.index(self.category))

    def settled(self, answer: Answer, image: int) -> "Category | Pixels":
        index = answer.index(self.category)
        return Category(index) if answer.logits.ndim == 2 else Pixels(index).settled(answer, image)


@dataclass(frozen=True)
class Predicted:
    """The model's own answer, image by image: the class with the highest logit, or the one predicted at most pixels.

    A background class is no answer of a dense model, unless there is nothing else.
    """

    def score(self, answer: Answer) -> Scores:
        chosen = torch.tensor([self._chosen(answer, image) for image in range(answer.batch)])
        picked = answer.logits[torch.arange(answer.batch), chosen.to(answer.logits.device)]
        if answer.logits.ndim == 2:
            return picked
        inside = answer.labels == chosen.to(answer.labels.device).reshape(-1, *[1] * (answer.labels.ndim - 1))
        return summed(picked, inside)

    def wording(self, answer: Answer, image: int) -> str:
        chosen = self._chosen(answer, image)
        return (Category(chosen) if answer.logits.ndim == 2 else Pixels(chosen)).wording(answer, image)

    def settled(self, answer: Answer, image: int) -> Category | Pixels:
        return Category(self._chosen(answer, image)).settled(answer, image)

    def _chosen(self, answer: Answer, image: int) -> int:
        if answer.logits.ndim == 2:
            return int(answer.logits[image].argmax())
        return answer.present(image)[0]
