"""Questions about one class: its logit, its probability, the likeliest ones, and a number that is no class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap import tree
from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.outputs import ModelOutput
from glowmap.shapes import PixelSets
from glowmap.targets._class import ClassQuestion, there
from glowmap.targets._target import Target, in_images

Change: TypeAlias = Callable[[Target], Target]
ClassLike: TypeAlias = int | str | Target  # a class as people put it: an index, a name, or a question about one
NEARLY = 0.999  # where a probability counts as saturated, and likewise its distance from 0


def as_class(question: Any) -> ClassQuestion:
    """Read a question about a class as people put it: an index, a name, or such a question. TargetError for others."""
    if isinstance(question, ClassQuestion):
        return question
    if isinstance(question, str) or is_whole_number(question):
        return Category(question if isinstance(question, str) else int(question))
    if isinstance(question, Target):
        raise TargetError(
            f"{type(question).__name__} is no question about a class, as this needs",
            remedy=Remedy(
                "give a class by index or name, or one "
                "made of classes: targets.Category, Probability, Ranked, Contrast or Finer"
            ),
        )
    raise TargetError(f"a class is an index or a name, not {type(question).__name__}; give one of these")


def changed_class(question: ClassLike, change: Change) -> Target:
    """Change a class that is part of a question; an index or a name becomes a :class:`Category` first."""
    return change(question if isinstance(question, Target) else as_class(question))


@dataclass(frozen=True)
class Category(ClassQuestion):
    """A class, by index or name: its logit; for a dense model its logits summed over the pixels predicted as this class.

    Of a model with one output and two class names the second is the class that the output speaks for, and the first its
    opposite, whose logit is the negative. Raises TargetError for a class that the model does not have.
    """

    category: int | str

    def chosen(self, answer: ModelOutput, image: int) -> int:
        return answer.index(self.category)

    def read(self, logits: Tensor, answer: ModelOutput) -> Tensor:
        return logits[:, answer.index(self.category)]

    def fixed(self, answer: ModelOutput, image: int) -> "Category":
        return Category(answer.index(self.category))


@dataclass(frozen=True)
class OutputValue(ClassQuestion):
    """A number that the model answers with and that is no class: a regression's output, by its index.

    Of a dense model (a depth at every pixel) the sum over all pixels. For an age, a count, an angle: the map shows what speaks
    for a larger number, and that of ``Not(OutputValue())`` what speaks for a smaller one. Raises TargetError beyond the outputs.
    """

    index: int = 0
    ranks: ClassVar[bool] = False  # no figure shows which of such numbers is the likeliest class

    def chosen(self, answer: ModelOutput, image: int) -> int:
        count = answer.outputs.shape[1]
        if not is_whole_number(self.index, 0, count):
            raise TargetError(f"no output {self.index!r}: {answer.model} has {count}, from 0 to {count - 1}")
        return int(self.index)

    def read(self, logits: Tensor, answer: ModelOutput) -> Tensor:
        return (logits[:, 1:] if answer.is_binary else logits)[:, self.chosen(answer, 0)]

    def named(self, answer: ModelOutput, image: int) -> str:
        return f"output {self.chosen(answer, image)}"

    def inside(self, answer: ModelOutput) -> PixelSets:
        return torch.ones_like(answer.labels, dtype=torch.bool)


@dataclass(frozen=True)
class Predicted(ClassQuestion):
    """The model's own answer, image by image: the class with the highest logit, or the one predicted at most pixels.

    A background class is no answer of a dense model, unless there is nothing else.
    """

    def chosen(self, answer: ModelOutput, image: int) -> int:
        if answer.logits.ndim == 2:
            return int(answer.logits[image].argmax())
        return _ranking(answer, image)[0]

    def fixed(self, answer: ModelOutput, image: int) -> Category:
        return Category(self.chosen(answer, image))


@dataclass(frozen=True)
class Ranked(ClassQuestion):
    """The class at a place among the likeliest, image by image: 0 is the one with the highest logit, 1 the next.

    Of a dense model the one predicted at the most pixels, the next most, and so on, a background last. Raises TargetError beyond
    the classes that there are.
    """

    rank: int

    def chosen(self, answer: ModelOutput, image: int) -> int:
        ranking, rank = _ranking(answer, image), self.rank
        if not is_whole_number(rank, 0, len(ranking)):
            dense, many = answer.logits.ndim > 2, f"{len(ranking)} class{'es' * (len(ranking) > 1)}"
            predicts = f"predicts {many}{in_images([image], answer.logits)} ({there(answer, image)})" if dense else ""
            raise TargetError(
                f"there is no class of rank {rank!r}: {answer.model} {predicts or f'has {many}'}",
                remedy=Remedy(
                    f"give a rank from 0, the likeliest, to {len(ranking) - 1}", "ask for fewer: --top NUMBER"
                ),
            )
        return ranking[rank]

    def fixed(self, answer: ModelOutput, image: int) -> Category:
        return Category(self.chosen(answer, image))


@dataclass(frozen=True)
class OfEach(ClassQuestion):
    """A class for each image, by its index."""

    categories: tuple[int, ...]

    def chosen(self, answer: ModelOutput, image: int) -> int:
        return self.categories[image]

    def fixed(self, answer: ModelOutput, image: int) -> Category:
        return Category(self.categories[image])


def top(count: int) -> list[Ranked]:
    """Ask about the ``count`` likeliest classes, the likeliest first: a list of questions, to be given as ``target``."""
    if not is_whole_number(count, 1):
        raise TargetError(f"the likeliest classes are one or more, not {count!r}; give how many: targets.top(3)")
    return [Ranked(rank) for rank in range(count)]


def _ranking(answer: ModelOutput, image: int) -> list[int]:
    """Order the classes of an image, the likeliest first. Raises TargetError where a dense model predicts none."""
    if answer.logits.ndim == 2:
        ordered = answer.logits[image].argsort(descending=True, stable=True).tolist()
        # of classifiers in the common order of ImageNet the first of 1001 classes is called background: a class like others
        last = answer.background if answer.is_detector or answer.background_index is not None else None
        return sorted(ordered, key=lambda index: index == last)
    present = answer.present(image)
    if not present:
        raise TargetError(
            f"no pixel is predicted as anything{in_images([image], answer.logits)}",
            remedy=Remedy("give a mask: targets.Pixels(class, mask)"),
        )
    return present


@dataclass(frozen=True)
class Probability(ClassQuestion):
    """The probability of a class: softmax over all classes, or a sigmoid of its logit where each output stands for itself.

    That is so of a model with one output, and where ``independent`` says it (several classes may be right at once). For a dense
    model the probability at every pixel, summed as logits are. A probability rises also where its rivals fall: its gradient by
    the logits is p_c (1 - p_c) for the class and -p_c p_r for each rival r, and so nearly nothing close to 0 and to 1, which a
    note says. Raises TargetError for what is no class.
    """

    category: ClassLike
    independent: bool = False

    def chosen(self, answer: ModelOutput, image: int) -> int:
        return one_class(self.category).chosen(answer, image)

    def read(self, logits: Tensor, answer: ModelOutput) -> Tensor:
        asked, scores = one_class(self.category), tree.full_precision(logits)
        if _alone(self.independent, logits, answer):
            return asked.read(scores, answer).sigmoid()
        return asked.read(scores.softmax(1), answer)

    def named(self, answer: ModelOutput, image: int) -> str:
        return f"probability of {one_class(self.category).named(answer, image)}"

    def fixed(self, answer: ModelOutput, image: int) -> "Probability":
        return replace(self, category=one_class(self.category).fixed(answer, image))

    def with_parts(self, change: Change) -> "Probability":
        return replace(self, category=changed_class(self.category, change))

    def cautions(self, answer: ModelOutput) -> Sequence[str]:
        return self.doubts(answer, self.inside(answer) if answer.logits.ndim > 2 else None)

    def doubts(self, answer: ModelOutput, places: PixelSets | None = None) -> Sequence[str]:
        return _saturated(self, answer, places, "the gradient of a probability", both=True)


@dataclass(frozen=True)
class LogProbability(Probability):
    """The logarithm of a class's probability, which is read as :class:`Probability` reads it: for one that is small.

    Its gradient is that of the probability divided by it: the same direction, and not lost where the probability is nearly 0.
    Close to 1 it is nearly nothing as well, which a note says. Raises TargetError for what is no class.
    """

    def read(self, logits: Tensor, answer: ModelOutput) -> Tensor:
        asked, scores = one_class(self.category), tree.full_precision(logits)
        if _alone(self.independent, logits, answer):
            return F.logsigmoid(asked.read(scores, answer))
        return asked.read(scores.log_softmax(1), answer)

    def named(self, answer: ModelOutput, image: int) -> str:
        return f"log-{super().named(answer, image)}"

    def doubts(self, answer: ModelOutput, places: PixelSets | None = None) -> Sequence[str]:
        own = Probability(self.category, self.independent)
        return _saturated(own, answer, places, "the gradient of its logarithm", both=False)


def one_class(category: ClassLike, what: str = "a probability is that of a class") -> ClassQuestion:
    """Read a class alone, and no question made of classes: TargetError for others, which begins with ``what`` is asked."""
    question = as_class(category)
    if not isinstance(question, Category | Predicted | Ranked | OfEach):
        raise TargetError(
            f"{what}, and {type(question).__name__} is none",
            remedy=Remedy("give a class by index or name, targets.Predicted() or targets.Ranked(rank)"),
        )
    return question


def _alone(independent: bool, logits: Tensor, answer: ModelOutput) -> bool:
    """Tell whether the class's logit makes its probability by itself."""
    return independent or answer.has_independent_classes or logits.shape[1] == 1


def _saturated(
    probability: Probability, answer: ModelOutput, places: PixelSets | None, gradient: str, *, both: bool
) -> list[str]:
    """Say where a probability is so near to 1, or to ``both`` its ends, that little is left of its gradient."""
    with torch.no_grad():
        found = probability.read(answer.logits, answer)
        if places is not None:
            found = (found * places).flatten(1).sum(1) / places.flatten(1).sum(1)
    alone = _alone(probability.independent, answer.logits, answer)
    rivals = "" if alone else ", and speaks of the rivals as much as of the class"
    return [
        f"the {probability.named(answer, image)} is {p:.5f}{in_images([image], found)}: {gradient} is nearly nothing "
        f"there{rivals}; the class alone as target, its logit, says more"
        for image, p in enumerate(found.tolist())
        if p > NEARLY or (both and p < 1 - NEARLY)
    ]
