"""Questions as people put them: indices, names, labels of a batch, callables, and lists of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glowmap.errors import Remedy, TargetError, summarise
from glowmap.outputs import ModelOutput
from glowmap.shapes import Scores
from glowmap.targets._target import Annotation, Target, annotations_of, cautions_of, checked, leaves, settled
from glowmap.targets.classes import Category, Predicted
from glowmap.targets.pixels import Pixels
from glowmap.targets.regions import Region


@dataclass(frozen=True)
class Each:
    """One question for each image of the batch, in its order."""

    questions: Sequence[Any]

    @cached_property
    def _all(self) -> list[Target]:
        if not isinstance(self.questions, Sequence) or isinstance(self.questions, str):
            raise TargetError(f"Each takes a list of questions, one for each image, not {self.questions!r}")
        return [as_target(question) for question in self.questions]

    def _targets(self, answer: ModelOutput) -> list[Target]:
        if len(self._all) != answer.batch:
            raise TargetError(f"{len(self._all)} targets for {answer.batch} images; give one target for each image")
        return self._all

    def all(self) -> list[Target]:
        """List the questions."""
        return self._all

    def of(self, answer: ModelOutput, image: int) -> Target:
        """Tell which question an image gets."""
        return self._targets(answer)[image]

    def score(self, answer: ModelOutput) -> Scores:
        return torch.stack([self._score(answer, target, i) for i, target in enumerate(self._targets(answer))])

    def _score(self, answer: ModelOutput, target: Target, image: int) -> Tensor:
        if by_callable(target):  # what it reads is its own affair, so it gets all and its image is picked after
            return checked(target.score(answer), answer.batch, target.describe(answer, image))[image]
        return target.score(answer.only(image))[0]

    def pin(self, answer: ModelOutput, image: int) -> Target:
        target = self.of(answer, image)
        return settled(target, answer, image) if by_callable(target) else settled(target, answer.only(image), 0)

    def cautions(self, answer: ModelOutput) -> list[str]:
        several = [
            (image, cautions_of(target, answer.only(image))) for image, target in enumerate(self._targets(answer))
        ]
        return [
            f"{caution} (image {image})" if answer.batch > 1 else caution
            for image, cautions in several
            for caution in cautions
        ]

    def with_parts(self, change: Callable[[Target], Target]) -> "Each":
        return Each([change(question) for question in self._all])

    def annotations(self, answer: ModelOutput, image: int) -> Sequence[Annotation]:
        return annotations_of(self.of(answer, image), answer.only(image), 0)

    def describe(self, answer: ModelOutput, image: int) -> str:
        target = self._targets(answer)[image]
        return target.describe(answer if by_callable(target) else answer.only(image), 0)


@dataclass(frozen=True)
class FunctionTarget:
    """A callable of the user's own, from the model's raw output to one score per image."""

    function: Callable[[Any], Tensor]

    def score(self, answer: ModelOutput) -> Any:  # held to the contract by checked()
        try:
            return self.function(answer.raw)
        except Exception as error:
            raise TargetError(
                f"the target {self.describe(answer, 0)!r} raised {summarise(error)}; "
                f"it is called with the raw output of {answer.model}, here {type(answer.raw).__name__}"
            ) from error

    def describe(self, answer: ModelOutput, image: int) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def by_callable(question: Target) -> bool:
    """Tell whether a question, or a part of it, is a callable of the user's own, which reads the output of the whole batch."""
    return any(isinstance(one, FunctionTarget) for one in leaves(question))


# One question, as people put it. A list or tuple of these asks several.
TargetLike: TypeAlias = int | str | Target | Region | Tensor | NDArray[Any] | Callable[[Any], Tensor] | None


def as_target(question: Any) -> Target:
    """Read a question as people put it: None (the predicted class), an index, a name, labels of a batch, a target, a callable."""
    if question is None:
        return Predicted()
    if isinstance(question, type):
        raise TargetError(
            f"{question.__name__} is a kind of target, not one; make one: targets.{question.__name__}(...)"
        )
    if isinstance(question, Target):
        return question
    if isinstance(question, Region):
        return Pixels(None, question)
    if isinstance(question, bool):
        raise TargetError(f"a target is a class, a set of pixels or a callable, not {question!r}")
    if isinstance(question, int | np.integer | str):
        return Category(question if isinstance(question, str) else int(question))
    if isinstance(question, Tensor | np.ndarray):
        return _labels(question)
    if callable(question):
        return FunctionTarget(question)
    raise TargetError(
        f"a target is a class index or name, a question of glowmap.targets, a callable, or a list of those, not "
        f"{type(question).__name__}"
    )


def as_questions(target: Any) -> list[Target]:
    """Split a target into its questions: a list or tuple asks several."""
    if isinstance(target, list | tuple):
        if not target:
            raise TargetError("an empty list of targets; give at least one, or None for the predicted class")
        return [as_target(question) for question in target]
    return [as_target(target)]


def _labels(labels: Tensor | NDArray[Any]) -> Category | Each:
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "U" and labels.ndim == 1:
        return Each(tuple(map(str, labels)))
    if isinstance(labels, np.ndarray) and labels.dtype.kind not in "iuf":
        raise TargetError(f"the classes of a batch are one axis of integers or names, not an array of {labels.dtype}")
    indices = torch.as_tensor(labels)
    if indices.ndim == 0 and not indices.is_floating_point() and indices.dtype != torch.bool:
        return Category(int(indices))
    if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
        raise TargetError(
            f"the class indices of a batch are one integer axis, not {indices.dtype} of shape {tuple(indices.shape)}",
            remedy=Remedy("for a set of pixels pass targets.Pixels(class, mask)"),
        )
    return Each(tuple(indices.tolist()))
