"""Targets from what people write: indices, names, the labels of a batch, callables, and lists of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glowmap.cautions import Caution
from glowmap.errors import Remedy, TargetError, summarise
from glowmap.outputs import ModelOutput
from glowmap.shapes import Scores
from glowmap.targets._class import Category
from glowmap.targets._target import Annotation, Target
from glowmap.targets.classes import Predicted
from glowmap.targets.pixels import Pixels
from glowmap.targets.regions import Region


@dataclass(frozen=True)
class PerImage(Target):
    """A target for each image of the batch, in its order. Raises TargetError where there are not as many as images."""

    targets: Sequence[Any]

    @cached_property
    def _targets(self) -> list[Target]:
        if not isinstance(self.targets, Sequence) or isinstance(self.targets, str):
            raise TargetError(f"PerImage takes a list of targets, one for each image, not {self.targets!r}")
        return [as_target(target) for target in self.targets]

    def children(self) -> Sequence[Target]:
        return self._targets

    def with_children(self, children: Sequence[Target]) -> "PerImage":
        return PerImage(children)

    def for_image(self, image: int) -> Target:
        return self._targets[image]

    def score(self, output: ModelOutput) -> Scores:
        return torch.stack([self._score(output, image) for image in range(len(self._for_batch(output)))])

    def describe(self, output: ModelOutput, image: int) -> str:
        return self._for_batch(output)[image].describe(*self._at(output, image))

    def pin(self, output: ModelOutput, image: int) -> Target:
        return self._for_batch(output)[image].pin(*self._at(output, image))

    def cautions(self, output: ModelOutput) -> list[str]:
        cautions = [
            (image, self._for_batch(output)[image].cautions(output.only(image))) for image in range(output.batch)
        ]
        if output.batch == 1:
            return list(cautions[0][1])
        return [_in_image(caution, image) for image, of_image in cautions for caution in of_image]

    def annotations(self, output: ModelOutput, image: int) -> Sequence[Annotation]:
        return self._for_batch(output)[image].annotations(output.only(image), 0)

    @property
    def has_layer_score(self) -> bool:
        return any(child.has_layer_score for child in self.children())

    def layer_score(self, output: ModelOutput) -> Tensor | None:
        targets = self._targets[: output.batch]  # the search may run the first image alone
        scores = [target.layer_score(output.only(image)) for image, target in enumerate(targets)]
        known = [score for score in scores if score is not None]
        return torch.cat(known) if known else None

    def _for_batch(self, output: ModelOutput) -> list[Target]:
        if len(self._targets) != output.batch:
            raise TargetError(f"{len(self._targets)} targets for {output.batch} images; give one target for each image")
        return self._targets

    def _score(self, output: ModelOutput, image: int) -> Tensor:
        target = self._targets[image]
        if target.reads_raw_output:
            return target.checked_score(output)[image]
        return target.score(output.only(image))[0]

    def _at(self, output: ModelOutput, image: int) -> tuple[ModelOutput, int]:
        """Cut the output down to one image, except for a callable, which gets the raw output of the whole batch."""
        return (output, image) if self._targets[image].reads_raw_output else (output.only(image), 0)


def _in_image(caution: str, image: int) -> str:
    """Add the image to a caution, which stays of its kind."""
    sentence = f"{caution} (image {image})"
    return caution.kind(sentence) if isinstance(caution, Caution) else sentence


def pin_images(target: Target, output: ModelOutput) -> PerImage:
    """Return the target pinned to each image of the batch."""
    return PerImage([target.pin(output, image) for image in range(output.batch)])


@dataclass(frozen=True)
class FunctionTarget(Target):
    """A callable of the user's, from the model's raw output to one score per image."""

    function: Callable[[Any], Tensor]
    reads_raw_output = True

    def score(self, output: ModelOutput) -> Any:  # check_scores() says what is wrong with it
        try:
            return self.function(output.raw)
        except Exception as error:
            raise TargetError(
                f"the target {self.describe(output, 0)!r} raised {summarise(error)}; "
                f"it is called with the raw output of {output.model}, here {type(output.raw).__name__}"
            ) from error

    def describe(self, output: ModelOutput, image: int) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def layer_key(self, read_output: Callable[[], ModelOutput]) -> Any:
        """Return the function's code and the plain values of its closure.

        A function is often made anew for each call, and holding it would hold all that it refers to.
        """
        code = getattr(self.function, "__code__", None)
        if code is None:
            return id(self.function)
        values = [cell.cell_contents for cell in getattr(self.function, "__closure__", None) or ()]
        return code, tuple(value for value in values if isinstance(value, str | int | float | bool))


@runtime_checkable
class HasScore(Protocol):
    """An object with the two methods that a target must have, though it is no subclass of :class:`Target`."""

    def score(self, output: ModelOutput) -> Tensor: ...
    def describe(self, output: ModelOutput, image: int) -> str: ...


@dataclass(frozen=True)
class _Wrapped(Target):
    """An object with ``score`` and ``describe`` as a target."""

    scorer: HasScore

    def score(self, output: ModelOutput) -> Any:  # check_scores() says what is wrong with it
        return self.scorer.score(output)

    def describe(self, output: ModelOutput, image: int) -> str:
        return self.scorer.describe(output, image)


# One target, as people write it. A list or tuple of these is several targets.
TargetLike: TypeAlias = int | str | Target | HasScore | Region | Tensor | NDArray[Any] | Callable[[Any], Tensor] | None


def as_target(target: Any) -> Target:
    """Return the target for None (the model's prediction), an index, a name, labels of a batch, a callable, or a target.

    An object that has ``score`` and ``describe`` is wrapped. Raises TargetError for anything else.
    """
    if target is None:
        return Predicted()
    if isinstance(target, type):
        raise TargetError(
            f"{target.__name__} is a type, not an instance", remedy=Remedy(f"make one: targets.{target.__name__}(...)")
        )
    if isinstance(target, Target):
        return target
    if isinstance(target, HasScore):
        return _wrap(target)
    if isinstance(target, Region):
        return Pixels(None, target)
    if isinstance(target, bool):
        raise TargetError(f"a target is a class, a set of pixels or a callable, not {target!r}")
    if isinstance(target, int | np.integer | str):
        return Category(target if isinstance(target, str) else int(target))
    if isinstance(target, Tensor | np.ndarray):
        return _labels(target)
    if callable(target):
        return FunctionTarget(target)
    raise TargetError(
        f"a target is a class index or name, a target of glowmap.targets, a callable, or a list of those, not "
        f"{type(target).__name__}"
    )


def as_targets(target: Any) -> list[Target]:
    """Return the targets in a list or tuple, or one target alone. Raises TargetError for an empty list."""
    if isinstance(target, list | tuple):
        if not target:
            raise TargetError("an empty list of targets; give at least one, or None for the predicted class")
        return [as_target(member) for member in target]
    return [as_target(target)]


def _wrap(scorer: HasScore) -> Target:
    """Wrap an object that has score and describe. TargetError where it has other methods of a target, which would be ignored."""
    methods = {name for name in vars(Target) if not name.startswith("_")} - {"score", "describe", *dir(nn.Module)}
    ignored = sorted(name for name in methods if hasattr(scorer, name))
    if ignored:
        raise TargetError(
            f"{type(scorer).__name__} has {', '.join(ignored)}, which is read only from subclasses of Target",
            remedy=Remedy("make it a subclass of glowmap.targets.Target"),
        )
    return _Wrapped(scorer)


def _labels(labels: Tensor | NDArray[Any]) -> Category | PerImage:
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "U" and labels.ndim == 1:
        return PerImage(tuple(map(str, labels)))
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
    return PerImage(tuple(indices.tolist()))
