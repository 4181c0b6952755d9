"""Questions made of others: one class rather than another, a class among its nearest rivals, and what speaks against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import Remedy, TargetError, is_number, is_whole_number
from glowmap.outputs import ModelOutput
from glowmap.shapes import PixelSets, Scores
from glowmap.targets._class import ClassQuestion
from glowmap.targets._target import Target, in_images, settled
from glowmap.targets.classes import Change, ClassLike, Predicted, as_class, changed_class, one_class
from glowmap.targets.conversion import as_target


@dataclass(frozen=True)
class Contrast(ClassQuestion):
    """A class rather than another, or than several: its score minus theirs, or minus their mean.

    For a dense model at the same places, those predicted as ``this`` class. Each may be an index, a name or a question about a
    class (``Predicted()``, ``LogProbability("car")``). Raises TargetError for a class rather than itself.
    """

    this: ClassLike
    than: ClassLike | Sequence[ClassLike]

    def chosen(self, answer: ModelOutput, image: int) -> int:
        return as_class(self.this).chosen(answer, image)

    def read(self, logits: Tensor, answer: ModelOutput) -> Tensor:
        others = self._others()
        self._refuse_itself(answer)
        against = torch.stack([other.read(logits, answer) for other in others]).mean(0)
        return as_class(self.this).read(logits, answer) - against

    def named(self, answer: ModelOutput, image: int) -> str:
        *first, last = [other.named(answer, image) for other in self._others()]
        others = f"{', '.join(first)} or {last}" if first else last
        return f"{as_class(self.this).named(answer, image)} rather than {others}"

    def inside(self, answer: ModelOutput) -> PixelSets:
        return as_class(self.this).inside(answer)

    def fixed(self, answer: ModelOutput, image: int) -> "Contrast":
        return Contrast(as_class(self.this).fixed(answer, image), [one.fixed(answer, image) for one in self._others()])

    def cautions(self, answer: ModelOutput) -> list[str]:
        places = self.inside(answer) if answer.logits.ndim > 2 else None
        return [caution for one in (as_class(self.this), *self._others()) for caution in one.doubts(answer, places)]

    def with_parts(self, change: Change) -> "Contrast":
        return Contrast(changed_class(self.this, change), [changed_class(one, change) for one in self._listed()])

    def _listed(self) -> list[ClassLike]:
        listed: list[Any] = [*self.than] if isinstance(self.than, list | tuple) else [self.than]
        if not listed:
            raise TargetError(
                "a class rather than no other",
                remedy=Remedy(
                    "give at least one: targets.Contrast(this, [other, ...])", "give at least one: --against CLASS"
                ),
            )
        return listed

    def _others(self) -> list[ClassQuestion]:
        return [as_class(one) for one in self._listed()]

    def _refuse_itself(self, answer: ModelOutput) -> None:
        one = as_class(self.this)
        for other in self._others():
            if any(isinstance(part, Contrast | Finer | _Weighed) for part in (one, other)):
                continue  # which are about more than the one class
            same = [i for i in range(answer.batch) if one.chosen(answer, i) == other.chosen(answer, i)]
            if same:
                raise TargetError(
                    f"{one.named(answer, same[0])!r} was asked for rather than itself{in_images(same, range(answer.batch))}, "
                    "which is nothing; give two classes"
                )


@dataclass(frozen=True)
class Finer(ClassQuestion):
    """A class among its nearest rivals, for what tells it from its like: Finer-CAM (CVPR 2025, arXiv:2501.11309).

    ``sum_r p_r (y_c - weight * y_r) / sum_r p_r`` over the ``rivals`` classes r whose logits y_r lie nearest to y_c, above it or
    below, with p the softmax over all classes: as the p_r weigh the gradients of the differences, they are constants here.
    (pytorch-grad-cam differentiates them too; torch-cam takes the plain mean, and a weight of 0.6.) Where there are fewer other
    classes, all are taken. A dense model has its rivals at each place. Without a class, the one predicted. Raises TargetError
    for a model with one output, whose class has no rivals.
    """

    category: ClassLike | None = None
    rivals: int = 3
    weight: float = 1.0

    def chosen(self, answer: ModelOutput, image: int) -> int:
        return self._asked().chosen(answer, image)

    def read(self, logits: Tensor, answer: ModelOutput) -> Tensor:
        classes, weights = self._nearest(logits, self.indices(answer).to(logits.device))
        own = self._asked().read(logits, answer)
        return own - self.weight * (tree.full_precision(logits).gather(1, classes) * weights).sum(1)

    def named(self, answer: ModelOutput, image: int) -> str:
        own = self._asked().named(answer, image)
        if answer.logits.ndim > 2:
            return f"{own} rather than its rivals"
        classes, _ = self._nearest(answer.logits[image : image + 1], torch.tensor([self.chosen(answer, image)]))
        *first, last = [answer.name(int(rival)) for rival in classes[0]]
        return f"{own} rather than {', '.join(first)} or {last}" if first else f"{own} rather than {last}"

    def inside(self, answer: ModelOutput) -> PixelSets:
        return self._asked().inside(answer)

    def fixed(self, answer: ModelOutput, image: int) -> ClassQuestion:
        chosen = torch.tensor([self.chosen(answer, image)])
        classes, weights = self._nearest(answer.logits[image : image + 1], chosen.to(answer.logits.device))
        return _Weighed(int(chosen), classes[0], self.weight * weights[0], self.named(answer, image))

    def with_parts(self, change: Change) -> "Finer":
        return replace(self, category=changed_class(self._asked(), change))

    def _asked(self) -> ClassQuestion:
        return one_class(Predicted() if self.category is None else self.category, "a class has rivals")

    def _nearest(self, logits: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Find the rivals at each place, batch x rival (x places), and what each weighs; both without a gradient."""
        count = logits.shape[1]
        if not is_whole_number(self.rivals, 1):
            raise TargetError(f"the nearest rivals are one or more, not {self.rivals!r}; give how many")
        if not is_number(self.weight):
            raise TargetError(f"the rivals' weight is a number, not {self.weight!r}; give one, 1 for all of them")
        if count < 2:
            raise TargetError("the model has one class, which has no rivals; ask about the class alone")
        scores = tree.full_precision(logits.detach())
        own = chosen.reshape(-1, *[1] * (scores.ndim - 1)).expand(-1, 1, *scores.shape[2:])
        far = (scores - scores.gather(1, own)).abs().scatter(1, own, torch.inf)
        classes = far.topk(min(int(self.rivals), count - 1), 1, largest=False).indices
        # p_r / sum p_r is the softmax over the rivals alone, also where all p_r are too small for a number
        return classes, scores.gather(1, classes).softmax(1)


@dataclass(frozen=True)
class _Weighed(ClassQuestion):
    """A class against rivals with weights that are fixed: rival, or rival x places."""

    category: int
    classes: Tensor
    weights: Tensor
    called: str

    def chosen(self, answer: ModelOutput, image: int) -> int:
        return self.category

    def read(self, logits: Tensor, answer: ModelOutput) -> Tensor:
        rivals = tree.full_precision(logits).gather(1, self.classes.expand(len(logits), *self.classes.shape))
        return logits[:, self.category] - (rivals * self.weights).sum(1)

    def named(self, answer: ModelOutput, image: int) -> str:
        return self.called


@dataclass(frozen=True)
class Not:
    """What speaks against: the negative of any question's score, the counterfactual of the Grad-CAM paper.

    Selvaraju et al., arXiv:1610.02391, section 3.2: the weights are the means of the negative gradients, so the map shows places
    without which the score would be higher. What it is the negative of may be anything that can be a target.
    """

    target: Any = None

    def score(self, answer: ModelOutput) -> Scores:
        return -self._asked().score(answer)

    def describe(self, answer: ModelOutput, image: int) -> str:
        asked = self._asked()
        if isinstance(asked, Not):
            return asked._asked().describe(answer, image)
        wording = asked.describe(answer, image)
        return f"not ({wording})" if " rather than " in wording else f"not {wording}"

    def pin(self, answer: ModelOutput, image: int) -> "Not":
        return Not(settled(self._asked(), answer, image))

    def with_parts(self, change: Change) -> "Not":
        return Not(change(self._asked()))

    def _asked(self) -> Target:
        if isinstance(self.target, list | tuple):
            raise TargetError(
                "Not takes one target",
                remedy=Remedy("negate each by itself: target=[targets.Not(...), ...]"),
            )
        return as_target(self.target)
