"""Targets about one class: its logit, its probability, the likeliest classes; and an output that is no class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap import tree
from glowmap.cautions import Caution, caution_kind
from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.outputs import ModelOutput
from glowmap.shapes import PixelSets
from glowmap.targets._class import Category, ClassTarget, present_classes
from glowmap.targets._target import Target, in_images

ClassLike: TypeAlias = int | str | Target  # a class as people write it: an index, a name, or a target about a class
_SATURATION = 0.999  # a probability above it, or below 1 minus it, has nearly no gradient
_SATURATED = caution_kind(
    "probability-saturated", "caution", "Choose the class itself as the target: its logit has a gradient there."
)


def as_class(category: Any) -> ClassTarget:
    """Return the target for a class index or name; a target about a class as it is. Raises TargetError for anything else."""
    if isinstance(category, ClassTarget):
        return category
    if isinstance(category, str) or is_whole_number(category):
        return Category(category if isinstance(category, str) else int(category))
    if isinstance(category, Target):
        raise TargetError(
            f"{type(category).__name__} is not about a class, which is needed here",
            remedy=Remedy(
                "give a class by index or name, or a target made of classes: targets.Category, Probability, Ranked, Contrast or "
                "Finer"
            ),
        )
    raise TargetError(f"a class is an index or a name, not {type(category).__name__}; give one of these")


def class_child(category: ClassLike) -> Target:
    """Return a class that another target is made of; an index or a name becomes a :class:`Category`.

    A target that is not about a class stays: it may be a text, which :meth:`Target.map_leaves` replaces by a class.
    """
    return category if isinstance(category, Target) else as_class(category)


@dataclass(frozen=True)
class OutputValue(ClassTarget):
    """An output of the model that is a number and no class (a regression), by its index.

    Of a dense model (a depth at every pixel) the sum over all pixels. For an age, a count, an angle: the map shows the evidence
    for a larger number, and the map of ``Not(OutputValue())`` that for a smaller one. Raises TargetError for an index beyond the
    outputs.
    """

    index: int = 0
    is_class = False

    def class_index(self, output: ModelOutput, image: int) -> int:
        count = output.outputs.shape[1]
        if not is_whole_number(self.index, 0, count):
            raise TargetError(f"no output {self.index!r}: {output.model} has {count}, from 0 to {count - 1}")
        return int(self.index)

    def read(self, logits: Tensor, output: ModelOutput) -> Tensor:
        return (logits[:, 1:] if output.is_binary else logits)[:, self.class_index(output, 0)]

    def describe(self, output: ModelOutput, image: int) -> str:
        return f"output {self.class_index(output, image)}"

    def pixels(self, output: ModelOutput) -> PixelSets:
        return torch.ones_like(output.labels, dtype=torch.bool)


@dataclass(frozen=True)
class Predicted(ClassTarget):
    """The model's own prediction, image by image: the class with the highest logit, or the one predicted at most pixels.

    A dense model's background class counts only where nothing else is predicted.
    """

    is_prediction = True

    def class_index(self, output: ModelOutput, image: int) -> int:
        if output.logits.ndim == 2:
            return int(output.logits[image].argmax())
        return _ranking(output, image)[0]

    def pin_class(self, output: ModelOutput, image: int) -> Category:
        return Category(self.class_index(output, image))

    def replace_prediction(self, replacement: Callable[[ClassTarget | None], Target]) -> Target:
        return replacement(None)


@dataclass(frozen=True)
class Ranked(ClassTarget):
    """The class at a rank of the prediction, image by image: 0 is the class with the highest logit, 1 the next.

    Of a dense model, rank 0 is the class predicted at the most pixels, and a background class comes last. Raises TargetError for
    a rank beyond the classes.
    """

    rank: int

    def class_index(self, output: ModelOutput, image: int) -> int:
        ranking, rank = _ranking(output, image), self.rank
        if not is_whole_number(rank, 0, len(ranking)):
            is_dense, count = output.logits.ndim > 2, f"{len(ranking)} class{'es' * (len(ranking) > 1)}"
            where = f"{in_images([image], output.logits)} ({present_classes(output, image)})" if is_dense else ""
            raise TargetError(
                f"there is no class of rank {rank!r}: {output.model} {'predicts' if is_dense else 'has'} {count}{where}",
                remedy=Remedy(
                    f"give a rank from 0, the likeliest, to {len(ranking) - 1}", "ask for fewer: --top NUMBER"
                ),
            )
        return ranking[rank]

    def pin_class(self, output: ModelOutput, image: int) -> Category:
        return Category(self.class_index(output, image))


@dataclass(frozen=True)
class ClassPerImage(ClassTarget):
    """A class for each image, by its index."""

    categories: tuple[int, ...]

    def class_index(self, output: ModelOutput, image: int) -> int:
        return self.categories[image]

    def pin_class(self, output: ModelOutput, image: int) -> Category:
        return Category(self.categories[image])


def top(count: int) -> list[Ranked]:
    """Return targets for the ``count`` likeliest classes, the likeliest first: ``glowmap.explain(..., target=top(3))``."""
    if not is_whole_number(count, 1):
        raise TargetError(
            f"the number of likeliest classes is at least 1, not {count!r}; give how many: targets.top(3)"
        )
    return [Ranked(rank) for rank in range(count)]


def _ranking(output: ModelOutput, image: int) -> list[int]:
    """Return the classes of an image, the likeliest first. Raises TargetError where a dense model predicts none."""
    if output.logits.ndim == 2:
        order = output.logits[image].argsort(descending=True, stable=True).tolist()
        # the first of ImageNet's 1001 classes, where a classifier has so many, is called background: a class like any other
        last = output.background if output.readers.are_detections or output.background_index is not None else None
        return sorted(order, key=lambda index: index == last)
    present = output.present(image)
    if not present:
        raise TargetError(
            f"no pixel is predicted as anything{in_images([image], output.logits)}",
            remedy=Remedy("give a mask: targets.Pixels(class, mask)"),
        )
    return present


@dataclass(frozen=True)
class Probability(ClassTarget):
    """The probability of a class: a softmax over all classes, or a sigmoid of its logit.

    The sigmoid is that of models with one output, and of others with ``independent``: several classes may be right at once. For a
    dense model the probability at every pixel, summed as logits are. A probability also rises where its rivals fall: its gradient
    with respect to the logits is p_c (1 - p_c) for the class and -p_c p_r for each rival r. It vanishes close to 0 and to 1,
    which a caution says. Raises TargetError for a target that is not a single class.
    """

    category: ClassLike
    independent: bool = False

    def class_index(self, output: ModelOutput, image: int) -> int:
        return single_class(self.category).class_index(output, image)

    def read(self, logits: Tensor, output: ModelOutput) -> Tensor:
        target, scores = single_class(self.category), tree.full_precision(logits)
        if self.is_sigmoid(logits, output):
            return target.read(scores, output).sigmoid()
        return target.read(scores.softmax(1), output)

    def describe(self, output: ModelOutput, image: int) -> str:
        return f"probability of {single_class(self.category).describe(output, image)}"

    def pin_class(self, output: ModelOutput, image: int) -> "Probability":
        return replace(self, category=single_class(self.category).pin_class(output, image))

    def children(self) -> Sequence[Target]:
        return (class_child(self.category),)

    def with_children(self, children: Sequence[Target]) -> "Probability":
        return replace(self, category=children[0])

    def cautions(self, output: ModelOutput) -> Sequence[str]:
        return self.cautions_at(output, pixels_if_dense(self, output))

    def cautions_at(self, output: ModelOutput, pixels: PixelSets | None) -> Sequence[str]:
        return _saturation(self, output, pixels, "the gradient of a probability", at_zero=True)

    def is_sigmoid(self, logits: Tensor, output: ModelOutput) -> bool:
        """Return whether the class's logit alone makes its probability."""
        return self.independent or output.has_independent_classes or logits.shape[1] == 1


@dataclass(frozen=True)
class LogProbability(ClassTarget):
    """The logarithm of a class's probability, which is defined as for :class:`Probability`: for a small probability.

    Its gradient is that of the probability divided by the probability: the same direction, but it does not vanish close to 0. It
    vanishes close to 1, which a caution says. Raises TargetError for a target that is not a single class.
    """

    category: ClassLike
    independent: bool = False

    @property
    def probability(self) -> Probability:
        """The probability of which this is the logarithm."""
        return Probability(self.category, self.independent)

    def class_index(self, output: ModelOutput, image: int) -> int:
        return self.probability.class_index(output, image)

    def read(self, logits: Tensor, output: ModelOutput) -> Tensor:
        target, scores = single_class(self.category), tree.full_precision(logits)
        if self.probability.is_sigmoid(logits, output):
            return F.logsigmoid(target.read(scores, output))
        return target.read(scores.log_softmax(1), output)

    def describe(self, output: ModelOutput, image: int) -> str:
        return f"log-{self.probability.describe(output, image)}"

    def pin_class(self, output: ModelOutput, image: int) -> "LogProbability":
        return replace(self, category=single_class(self.category).pin_class(output, image))

    def children(self) -> Sequence[Target]:
        return (class_child(self.category),)

    def with_children(self, children: Sequence[Target]) -> "LogProbability":
        return replace(self, category=children[0])

    def cautions(self, output: ModelOutput) -> Sequence[str]:
        return self.cautions_at(output, pixels_if_dense(self, output))

    def cautions_at(self, output: ModelOutput, pixels: PixelSets | None) -> Sequence[str]:
        return _saturation(self.probability, output, pixels, "the gradient of its logarithm", at_zero=False)


def single_class(category: ClassLike, subject: str = "a probability is that of a class") -> ClassTarget:
    """Return the target for a single class. Raises TargetError for a target made of classes; ``subject`` begins the message."""
    target = as_class(category)
    if not isinstance(target, Category | Predicted | Ranked | ClassPerImage):
        raise TargetError(
            f"{subject}, and {type(target).__name__} is none",
            remedy=Remedy("give a class by index or name, targets.Predicted() or targets.Ranked(rank)"),
        )
    return target


def pixels_if_dense(target: ClassTarget, output: ModelOutput) -> PixelSets | None:
    """Return the pixels that a class's score is summed over; None for a classifier."""
    return target.pixels(output) if output.logits.ndim > 2 else None


def _saturation(
    target: Probability, output: ModelOutput, pixels: PixelSets | None, gradient: str, *, at_zero: bool
) -> list[Caution]:
    """Return a caution for each image whose probability is so near to 1, or to 0, that its gradient vanishes."""
    with torch.no_grad():
        probability = target.read(output.logits, output)
        if pixels is not None:
            probability = (probability * pixels).flatten(1).sum(1) / pixels.flatten(1).sum(1)
    rivals = "" if target.is_sigmoid(output.logits, output) else ", and depends on the rivals as much as on the class"
    return [
        _SATURATED(
            f"the {target.describe(output, image)} is {value:.5f}{in_images([image], probability)}: {gradient} nearly vanishes "
            f"there{rivals}; explain the class's logit, which is the class alone as target"
        )
        for image, value in enumerate(probability.tolist())
        if value > _SATURATION or (at_zero and value < 1 - _SATURATION)
    ]
