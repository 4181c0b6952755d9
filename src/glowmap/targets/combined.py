"""Targets made of others: a class minus other classes, a class minus its nearest rivals, and the negative of a target."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import Remedy, TargetError, is_number, is_whole_number
from glowmap.outputs import ModelOutput
from glowmap.shapes import PixelSets, Scores
from glowmap.targets._class import ClassTarget
from glowmap.targets._target import Target, in_images
from glowmap.targets.classes import ClassLike, Predicted, as_class, class_child, pixels_if_dense, single_class
from glowmap.targets.conversion import as_target


@dataclass(frozen=True)
class Contrast(ClassTarget):
    """A class rather than another, or than several: its score minus the other's, or minus the mean of the others' scores.

    Of a dense model at the pixels predicted as ``this`` class. Each class is an index, a name or a target about a class
    (``Predicted()``, ``LogProbability("car")``). Raises TargetError for a class contrasted with itself.
    """

    this: ClassLike
    than: ClassLike | Sequence[ClassLike]

    def class_index(self, output: ModelOutput, image: int) -> int:
        return as_class(self.this).class_index(output, image)

    def read(self, logits: Tensor, output: ModelOutput) -> Tensor:
        self._refuse_same_class(output)
        contrasted = torch.stack([rival.read(logits, output) for rival in self._rivals()]).mean(0)
        return as_class(self.this).read(logits, output) - contrasted

    def describe(self, output: ModelOutput, image: int) -> str:
        rivals = [rival.describe(output, image) for rival in self._rivals()]
        return f"{as_class(self.this).describe(output, image)} rather than {_either(rivals)}"

    def pixels(self, output: ModelOutput) -> PixelSets:
        return as_class(self.this).pixels(output)

    def pin_class(self, output: ModelOutput, image: int) -> "Contrast":
        rivals = [rival.pin_class(output, image) for rival in self._rivals()]
        return Contrast(as_class(self.this).pin_class(output, image), rivals)

    def cautions(self, output: ModelOutput) -> Sequence[str]:
        return self.cautions_at(output, pixels_if_dense(self, output))

    def cautions_at(self, output: ModelOutput, pixels: PixelSets | None) -> Sequence[str]:
        targets = (as_class(self.this), *self._rivals())
        return [caution for target in targets for caution in target.cautions_at(output, pixels)]

    def children(self) -> Sequence[Target]:
        return [class_child(self.this), *map(class_child, self._than())]

    def with_children(self, children: Sequence[Target]) -> "Contrast":
        return Contrast(children[0], children[1:])

    def _than(self) -> list[ClassLike]:
        classes: list[Any] = [*self.than] if isinstance(self.than, list | tuple) else [self.than]
        if not classes:
            raise TargetError(
                "Contrast needs a class to contrast with",
                remedy=Remedy(
                    "give at least one: targets.Contrast(this, [other, ...])", "give at least one: --against CLASS"
                ),
            )
        return classes

    def _rivals(self) -> list[ClassTarget]:
        return [as_class(category) for category in self._than()]

    def _refuse_same_class(self, output: ModelOutput) -> None:
        this = as_class(self.this)
        for rival in self._rivals():
            if any(isinstance(target, Contrast | Finer | _WeightedRivals) for target in (this, rival)):
                continue  # which are about more than one class
            same = [
                image
                for image in range(output.batch)
                if this.class_index(output, image) == rival.class_index(output, image)
            ]
            if same:
                raise TargetError(
                    f"{this.describe(output, same[0])!r} is contrasted with itself{in_images(same, range(output.batch))}, which "
                    "gives zero; give two classes"
                )


@dataclass(frozen=True)
class Finer(ClassTarget):
    """What tells a class from its nearest rivals: Finer-CAM (CVPR 2025, arXiv:2501.11309).

    ``sum_r p_r (y_c - weight * y_r) / sum_r p_r`` over the ``rivals`` classes r whose logits y_r lie nearest to y_c, above or
    below it, with p the softmax over all classes. As the p_r weight the gradients of the differences, they are constants here.
    (pytorch-grad-cam differentiates them too; torch-cam takes the plain mean, and a weight of 0.6.) Where there are fewer other
    classes, all are taken. A dense model has its rivals at each pixel. Without a class, the predicted one. Raises TargetError for
    a model with one output, whose class has no rivals.
    """

    category: ClassLike | None = None
    rivals: int = 3
    weight: float = 1.0

    def class_index(self, output: ModelOutput, image: int) -> int:
        return self._target().class_index(output, image)

    def read(self, logits: Tensor, output: ModelOutput) -> Tensor:
        classes, weights = self._nearest(logits, self.class_indices(output).to(logits.device))
        score = self._target().read(logits, output)
        return score - self.weight * (tree.full_precision(logits).gather(1, classes) * weights).sum(1)

    def describe(self, output: ModelOutput, image: int) -> str:
        name = self._target().describe(output, image)
        if output.logits.ndim > 2:
            return f"{name} rather than its rivals"
        classes, _ = self._nearest(output.logits[image : image + 1], torch.tensor([self.class_index(output, image)]))
        return f"{name} rather than {_either([output.name(int(rival)) for rival in classes[0]])}"

    def pixels(self, output: ModelOutput) -> PixelSets:
        return self._target().pixels(output)

    def pin_class(self, output: ModelOutput, image: int) -> ClassTarget:
        index = torch.tensor([self.class_index(output, image)])
        classes, weights = self._nearest(output.logits[image : image + 1], index.to(output.logits.device))
        return _WeightedRivals(int(index), classes[0], self.weight * weights[0], self.describe(output, image))

    def children(self) -> Sequence[Target]:
        return [self._target()]

    def with_children(self, children: Sequence[Target]) -> "Finer":
        return replace(self, category=children[0])

    def _target(self) -> ClassTarget:
        return single_class(Predicted() if self.category is None else self.category, "a class has rivals")

    def _nearest(self, logits: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rivals at each place, batch x rival (x grid), and the weight of each; both without a gradient."""
        count = logits.shape[1]
        if not is_whole_number(self.rivals, 1):
            raise TargetError(f"the number of rivals is at least 1, not {self.rivals!r}; give how many")
        if not is_number(self.weight):
            raise TargetError(f"the weight of the rivals is a number, not {self.weight!r}; give one, 1 for full weight")
        if count < 2:
            raise TargetError("the model has one class, which has no rivals; give the class alone as target")
        scores = tree.full_precision(logits.detach())
        index = indices.reshape(-1, *[1] * (scores.ndim - 1)).expand(-1, 1, *scores.shape[2:])
        distances = (scores - scores.gather(1, index)).abs().scatter(1, index, torch.inf)
        classes = distances.topk(min(int(self.rivals), count - 1), 1, largest=False).indices
        # p_r / sum p_r is the softmax over the rivals alone, also where all p_r underflow
        return classes, scores.gather(1, classes).softmax(1)


@dataclass(frozen=True)
class _WeightedRivals(ClassTarget):
    """A class minus rivals with fixed weights; ``classes`` and ``weights`` are rival, or rival x grid."""

    category: int
    classes: Tensor
    weights: Tensor
    description: str

    def class_index(self, output: ModelOutput, image: int) -> int:
        return self.category

    def read(self, logits: Tensor, output: ModelOutput) -> Tensor:
        rivals = tree.full_precision(logits).gather(1, self.classes.expand(len(logits), *self.classes.shape))
        return logits[:, self.category] - (rivals * self.weights).sum(1)

    def describe(self, output: ModelOutput, image: int) -> str:
        return self.description


@dataclass(frozen=True)
class Not(Target):
    """The negative of a target's score: the counterfactual of Grad-CAM (Selvaraju et al., arXiv:1610.02391, section 3.2).

    The weights are the means of the negative gradients, so the map shows the places without which the score would be higher.
    ``target`` is anything that may be a target, but a list.
    """

    target: Any = None

    @cached_property
    def _negated(self) -> Target:
        if isinstance(self.target, list | tuple):
            raise TargetError(
                "Not takes one target", remedy=Remedy("negate each in a list: target=[targets.Not(...), ...]")
            )
        return as_target(self.target)

    def children(self) -> Sequence[Target]:
        return (self._negated,)

    def with_children(self, children: Sequence[Target]) -> "Not":
        return Not(children[0])

    def score(self, output: ModelOutput) -> Scores:
        return -self._negated.checked_score(output)

    def describe(self, output: ModelOutput, image: int) -> str:
        if isinstance(self._negated, Not):
            return self._negated._negated.describe(output, image)
        description = self._negated.describe(output, image)
        return f"not ({description})" if " rather than " in description else f"not {description}"


def _either(names: Sequence[str]) -> str:
    """Return "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
