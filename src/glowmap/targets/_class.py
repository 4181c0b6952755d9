"""Targets about a class: the base class, which reads a score off the class scores at each pixel alike, and the class itself."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import Remedy, TargetError
from glowmap.outputs import ModelOutput
from glowmap.shapes import PixelSets, Scores
from glowmap.targets._target import Target, empty_images, in_images


class ClassTarget(Target):
    """A target about a class of each image: :meth:`read` computes the score from class scores, at each pixel alike.

    For a classifier the score is what is read off its class scores. For a dense model it is the sum over the pixels predicted as
    the class (Vinogradova et al. 2020, arXiv:2002.11434, eq. 2). Other targets read it elsewhere: ``Pixels`` at a set of pixels,
    ``Detection`` off the class scores of a detection.
    """

    reads_class_scores = True
    is_class = True

    @abstractmethod
    def class_index(self, output: ModelOutput, image: int) -> int:
        """Return the index of the class for one image. Raises TargetError for a class that the model does not have."""

    def class_indices(self, output: ModelOutput) -> Tensor:
        """Return the index of the class for each image: one axis, the batch."""
        return torch.tensor([self.class_index(output, image) for image in range(output.batch)])

    def read(self, logits: Tensor, output: ModelOutput) -> Tensor:
        """Compute the score from class scores: batch x class (x grid) become batch (x grid), in the graph of the pass."""
        return logits[torch.arange(len(logits)), self.class_indices(output).to(logits.device)]

    def pin_class(self, output: ModelOutput, image: int) -> "ClassTarget":
        """Return the target for one image alone, with the classes and weights fixed that depend on the model's prediction."""
        return self

    def pixels(self, output: ModelOutput) -> PixelSets:
        """Return the pixels of a dense model that are scored where no others are named: those predicted as the class."""
        return predicted_pixels(output, self.class_indices(output))

    def cautions_at(self, output: ModelOutput, pixels: PixelSets | None) -> Sequence[str]:
        """Return what to know before trusting the score, of a dense model that at these pixels."""
        return ()

    def score(self, output: ModelOutput) -> Scores:
        if output.logits.ndim > 2:
            return score_at(self, output, self.pixels(output))
        return self.read(output.logits, output)

    def describe(self, output: ModelOutput, image: int) -> str:
        return output.name(self.class_index(output, image))

    def pin(self, output: ModelOutput, image: int) -> "ClassTarget | PinnedPixels":
        target = self.pin_class(output, image)
        if output.logits.ndim == 2:
            return target
        return PinnedPixels(target, self.pixels(output)[image], description=self.describe(output, image))

    def replace_prediction(self, replacement: Callable[["ClassTarget | None"], Target]) -> Target:
        return replacement(self) if any(leaf.is_prediction for leaf in self.leaves()) else self


@dataclass(frozen=True)
class Category(ClassTarget):
    """A class, by index or name: its logit; for a dense model its logits summed over the pixels predicted as this class.

    Of a model with one output and two class names, the second class has this output as its logit, and the first its negative.
    Raises TargetError for a class that the model does not have.
    """

    category: int | str

    def class_index(self, output: ModelOutput, image: int) -> int:
        return output.index(self.category)

    def read(self, logits: Tensor, output: ModelOutput) -> Tensor:
        return logits[:, output.index(self.category)]

    def pin_class(self, output: ModelOutput, image: int) -> "Category":
        return Category(output.index(self.category))


@dataclass(frozen=True)
class PinnedPixels(Target):
    """A class summed over a fixed set of pixels; with ``around``, the mean over the set minus the mean over the ring around it.

    Both masks have the grid of the output and hold for all images alike. Pinned targets of dense models are of this kind.
    """

    target: ClassTarget
    inside: Tensor
    around: Tensor | None = None
    description: str = ""

    def score(self, output: ModelOutput) -> Scores:
        return score_at(self.target, output, self.inside, self.around)

    def describe(self, output: ModelOutput, image: int) -> str:
        return self.description or self.target.describe(output, image)


def predicted_pixels(output: ModelOutput, indices: Tensor) -> PixelSets:
    """Return the pixels of each image that are predicted as its class. Raises TargetError where there are none."""
    inside: Tensor = output.labels == indices.to(output.labels.device).reshape(-1, *[1] * (output.labels.ndim - 1))
    empty = empty_images(inside)
    if empty:
        remedy = f"give a class that is predicted ({present_classes(output, empty[0])})"
        raise TargetError(
            f"no pixel is predicted as {output.name(int(indices[empty[0]]))!r}{in_images(empty, inside)}",
            remedy=Remedy(f"{remedy}, or a mask: targets.Pixels(class, mask)", f"{remedy}, or a pixel: --at X,Y"),
        )
    return inside


def present_classes(output: ModelOutput, image: int = 0) -> str:
    """Return the names of the classes that a dense model predicts in an image, with the share of the pixels of each."""
    labels = output.labels[image]
    shares = [f"{output.name(index)} {(labels == index).float().mean():.1%}" for index in output.present(image)[:5]]
    return ", ".join(shares) or "none"


def score_at(target: ClassTarget, output: ModelOutput, inside: Tensor, around: Tensor | None = None) -> Scores:
    """Sum a class's score over a set of pixels; with ``around``, return the mean over the set minus the mean over that one."""
    values = tree.full_precision(target.read(output.logits, output))
    if around is None:
        return (values * inside).flatten(1).sum(1)
    return _mean(values, inside) - _mean(values, around)


def _mean(values: Tensor, mask: Tensor) -> Scores:
    count: Tensor = mask.expand_as(values).flatten(1).sum(1)
    return (values * mask).flatten(1).sum(1) / count
