"""The base class of all targets, what a target points at in the picture, and the check of its scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from glowmap import tree
from glowmap.errors import TargetError
from glowmap.outputs import Corners, ModelOutput
from glowmap.shapes import Scores

if TYPE_CHECKING:
    from glowmap.targets._class import ClassTarget


@dataclass(frozen=True, eq=False)
class Annotation:
    """A point (x, y), a box (left, top, right, bottom) or a region (rows x columns, true inside) that figures draw.

    Points and boxes are in shares of the model's input: 0 is its left or upper edge, 1 its right or lower edge. A region covers
    the model's input, at any resolution. Raises TargetError unless exactly one of the three is set.
    """

    point: tuple[float, float] | None = None
    box: Corners | None = None
    region: Bool[Tensor, "rows columns"] | None = None

    def __post_init__(self) -> None:
        count = sum(shape is not None for shape in (self.point, self.box, self.region))
        if count != 1:
            raise TargetError(
                f"an annotation is a point, a box or a region, and this one has {count}; give exactly one"
            )


class Target(ABC):
    """A function from the model's output to one score per image, with a description for captions.

    A subclass defines :meth:`score` and :meth:`describe`. The other methods have defaults and are overridden where the target
    needs more:

    - a target that depends on the model's prediction (the predicted class, the predicted pixels) overrides :meth:`pin`;
    - a target made of other targets overrides :meth:`children` and :meth:`with_children`. The defaults of all other methods then
      combine the answers of its children;
    - a target about a part of the picture overrides :meth:`is_local` and :meth:`annotations`;
    - a target that not every layer leads to overrides :meth:`layer_score` and :meth:`layer_key`;
    - a target that reads the output of inner layers overrides :meth:`needs_layers`.
    """

    @abstractmethod
    def score(self, output: ModelOutput) -> Scores:
        """Return one finite floating score per image of the batch, differentiable with respect to the model's output."""

    @abstractmethod
    def describe(self, output: ModelOutput, image: int) -> str:
        """Return what the target means for one image of the batch, for captions and messages: ``"car rather than bus"``."""

    def checked_score(self, output: ModelOutput) -> Scores:
        """Return the score. Raises TargetError unless it is one finite floating number per image.

        Raises TargetError also for a target that writes into the output, which other targets read.
        """
        tensors, name, count = list(tree.leaves(output.raw)), self.describe(output, 0), output.batch
        versions = [tensor._version for tensor in tensors]
        scores = self.score(output)
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            kind = f"a tensor of {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
            raise TargetError(
                f"the target {name!r} returned {kind}; return a floating tensor of {count} scores, one per image"
            )
        scores = scores[None] if scores.ndim == 0 and count == 1 else scores
        if tuple(scores.shape) != (count,):
            raise TargetError(
                f"the target {name!r} returned the shape {tuple(scores.shape)} for {count} image{'s' * (count > 1)}; "
                f"return one score per image, the shape ({count},)"
            )
        infinite = [image for image, is_finite in enumerate(scores.isfinite().tolist()) if not is_finite]
        if infinite:
            raise TargetError(
                f"the score of {name!r} is not finite{in_images(infinite, scores)}; look for NaN or overflow in the model's "
                "output"
            )
        if [tensor._version for tensor in tensors] != versions:
            raise TargetError(
                f"the target {name!r} writes into the model's output in place; write output * 2, not output *= 2"
            )
        return scores

    # targets made of targets

    def children(self) -> Sequence["Target"]:
        """Return the targets that this target is made of."""
        return ()

    def with_children(self, children: Sequence["Target"]) -> "Target":
        """Return a copy with other children, in the order of :meth:`children`."""
        if not self.children():
            return self
        raise TargetError(f"{type(self).__name__} has children and does not define with_children; define it")

    def for_image(self, image: int) -> "Target":
        """Return the target of one image of the batch, where the images have targets of their own."""
        return self

    def leaves(self) -> list["Target"]:
        """Return the targets without children that this target is made of; itself, if it has no children."""
        return [leaf for child in self.children() for leaf in child.leaves()] or [self]

    def map_leaves(self, change: Callable[["Target"], "Target"]) -> "Target":
        """Return a copy with ``change`` applied to each leaf."""
        if not self.children():
            return change(self)
        return self.with_children([child.map_leaves(change) for child in self.children()])

    # one score for all changed copies of an image

    def pin(self, output: ModelOutput, image: int) -> "Target":
        """Return the target for one image alone, with everything fixed that depends on the model's prediction for it.

        Methods that change the image score the pinned target: the predicted class and the predicted pixels are then those of
        the unchanged image. ``output`` is the output for the unchanged batch.
        """
        return self.with_children([child.pin(output, image) for child in self.children()]) if self.children() else self

    def moves_with_image(self, output: ModelOutput) -> bool:
        """Return whether the score means the same for a flipped or resized image once a dense output is flipped back."""
        return all(child.moves_with_image(output) for child in self.children())

    # what a person reads and sees

    def cautions(self, output: ModelOutput) -> Sequence[str]:
        """Return what to know before trusting a map of this score."""
        return [caution for child in self.children() for caution in child.cautions(output)]

    def annotations(self, output: ModelOutput, image: int) -> Sequence[Annotation]:
        """Return what the target points at in the picture: points, boxes and regions, each once."""
        marks = [mark for child in self.children() for mark in child.annotations(output, image)]
        return distinct(marks) if marks else marks

    # the search for a layer

    @property
    def has_layer_score(self) -> bool:
        """Whether :meth:`layer_score` is overridden, so that the target does not share the layer found for others."""
        is_overridden = type(self).layer_score is not Target.layer_score
        return is_overridden or any(child.has_layer_score for child in self.children())

    def layer_score(self, output: ModelOutput) -> Tensor | None:
        """Return the scores (one axis) that a layer for this target must all have a gradient of; None if any layer will do.

        For a detection: its class, its box and its mask, which one level of a feature pyramid leads to.
        """
        scores = [score for child in self.children() if (score := child.layer_score(output)) is not None]
        return torch.cat(scores) if scores else None

    def layer_key(self, read_output: Callable[[], ModelOutput]) -> Hashable | None:
        """Return what the layer of a leaf depends on besides the model and the input's shape; None if it must not be cached.

        ``read_output()`` returns the model's output for the unchanged input; call it only if the key depends on the output.
        """
        return None

    def is_local(self, output: ModelOutput) -> bool:
        """Return whether the score is about a part of the picture, so that no head pools all places for it."""
        return any(child.is_local(output) for child in self.children()) if self.children() else output.is_dense

    # what must be done before the model runs

    @property
    def needs_preparation(self) -> bool:
        """Whether :meth:`prepare` or :meth:`needs_layers` is overridden."""
        is_overridden = type(self).prepare is not Target.prepare or type(self).needs_layers is not Target.needs_layers
        return is_overridden or any(child.needs_preparation for child in self.children())

    def needs_layers(self) -> Sequence[str]:
        """Return the names of the layers whose output :meth:`score` reads, as ``output.intermediates[name]``.

        Each is a list with a ``LayerOutput`` for each run of the layer.
        """
        return [name for child in self.children() for name in child.needs_layers()]

    def prepare(self, embed: Callable[[Any], Tensor]) -> "Target":
        """Return the target that is scored. ``embed`` returns the model's embedding of another picture, 1 x feature."""
        return self.with_children([child.prepare(embed) for child in self.children()]) if self.children() else self

    def replace_prediction(self, replacement: Callable[["ClassTarget | None"], "Target"]) -> "Target":
        """Return a copy for a model that predicts no class: ``replacement(None)`` in place of its own prediction.

        A target about the predicted class becomes ``replacement(target)``.
        """
        if not self.children():
            return self
        return self.with_children([child.replace_prediction(replacement) for child in self.children()])

    # what kind of target it is

    @property
    def is_class(self) -> bool:
        """Whether the target is about classes, so that figures show the likeliest classes beside the map."""
        return any(child.is_class for child in self.children()) if self.children() else True

    @property
    def is_prediction(self) -> bool:
        """Whether the target is the model's own prediction, which is explained where no target is given."""
        return False

    @property
    def is_detection(self) -> bool:
        """Whether the target is about boxes that a detector found."""
        return any(child.is_detection for child in self.children())

    @property
    def reads_class_scores(self) -> bool:
        """Whether the score is computed from the model's class scores."""
        return any(child.reads_class_scores for child in self.children())

    @property
    def reads_raw_output(self) -> bool:
        """Whether the score is computed by a callable of the user's, which gets the raw output of the whole batch."""
        return any(child.reads_raw_output for child in self.children())


def empty_images(masks: Sequence[Tensor] | Tensor) -> list[int]:
    """Return the images whose mask is empty."""
    return [image for image, mask in enumerate(masks) if not mask.any()]


def in_images(images: Sequence[int], batch: Sequence[Any] | Tensor) -> str:
    """Return " in images 0, 2" for a message; nothing for a batch of one."""
    if len(batch) == 1:
        return ""
    return f" in image{'s' * (len(images) > 1)} {', '.join(map(str, images[:10]))}{', ...' * (len(images) > 10)}"


def distinct(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return each point, box and region once: two classes may be explained at the same place."""
    by_value = {(mark.point, mark.box, None if mark.region is None else id(mark.region)): mark for mark in annotations}
    return list(by_value.values())
