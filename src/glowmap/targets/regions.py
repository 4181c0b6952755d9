"""Regions of what a dense model predicts: an object by a point on it or by its size, and a single place."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.inputs import Shown
from glowmap.outputs import ModelOutput
from glowmap.shapes import crossed
from glowmap.targets._class import there
from glowmap.targets._target import in_images
from glowmap.targets.classes import Predicted


class Region(ABC):
    """A set of places of a dense model's output, which hangs on the picture and on what the model predicts in it."""

    @abstractmethod
    def places(self, answer: ModelOutput, image: int, category: int) -> Tensor:
        """Tell which places of the output belong to it, for a question about this class."""

    @abstractmethod
    def named(self, answer: ModelOutput, image: int, category: int) -> str:
        """Say in a caption where it is, for a question about this class."""

    @abstractmethod
    def category(self, answer: ModelOutput, image: int) -> int:
        """Tell the class that is predicted there, for a question that names none."""


@dataclass(frozen=True)
class At(Region):
    """The object under a point of the picture: the connected pixels of the class predicted there, corners counting as contact.

    ``x`` goes to the right and ``y`` down, in pixels of the picture as it was given (of the model's input where that was given
    ready made); a whole number means the middle of a pixel. Raises TargetError for a point outside what the model saw, and where
    a model with one class predicts nothing.
    """

    x: int | float
    y: int | float

    def places(self, answer: ModelOutput, image: int, category: int) -> Tensor:
        labels = answer.labels[image]
        cell = cell_at(self.x, self.y, answer, image)
        label = self._label(answer, image)
        objects, _ = connected(labels == label)
        return torch.from_numpy(objects == objects[cell]).to(labels.device)

    def category(self, answer: ModelOutput, image: int) -> int:
        return self._label(answer, image)

    def named(self, answer: ModelOutput, image: int, category: int) -> str:
        found = self._label(answer, image)
        another = f"in {'the ' * (answer.class_names is not None)}{answer.name(found)}"
        return f"{'object' if found == category else another} at {self.x:g}, {self.y:g}"

    def _label(self, answer: ModelOutput, image: int) -> int:
        label = label_at(self.x, self.y, answer, image)
        if label < 0:
            raise TargetError(
                f"nothing is predicted at {self.x:g}, {self.y:g}{in_images([image], answer.labels)}",
                remedy=Remedy(
                    "give a point on a "
                    "predicted pixel, targets.Point(x, y) for that place alone, or a mask: targets.Pixels(class, mask)",
                    "give a point on a predicted pixel",
                ),
            )
        return label


@dataclass(frozen=True)
class Point(Region):
    """The one place of the model's output under a point of the picture; ``x`` and ``y`` as in :class:`At`.

    Raises TargetError for a point outside what the model saw.
    """

    x: int | float
    y: int | float

    def places(self, answer: ModelOutput, image: int, category: int) -> Tensor:
        found = torch.zeros_like(answer.labels[image], dtype=torch.bool)
        found[cell_at(self.x, self.y, answer, image)] = True
        return found

    def category(self, answer: ModelOutput, image: int) -> int:
        return max(
            label_at(self.x, self.y, answer, image), 0
        )  # of a model with one class that one, also where it is not seen

    def named(self, answer: ModelOutput, image: int, category: int) -> str:
        return f"point {self.x:g}, {self.y:g}"


@dataclass(frozen=True)
class Object(Region):
    """A connected object of a class, by its size: 0 is the largest. Corners count as contact, and there may be any axes.

    Without a class, of the class predicted at most pixels. Raises TargetError where there are not as many.
    """

    number: int = 0

    def places(self, answer: ModelOutput, image: int, category: int) -> Tensor:
        labels = answer.labels[image]
        objects, sizes = connected(labels == category)
        order = np.argsort(-sizes, kind="stable")
        number = self.number
        if not is_whole_number(number, 0, len(sizes)):
            raise TargetError(self._missing(answer, image, category, sizes[order]))
        return torch.from_numpy(objects == order[number] + 1).to(labels.device)

    def category(self, answer: ModelOutput, image: int) -> int:
        return Predicted().chosen(answer, image)

    def named(self, answer: ModelOutput, image: int, category: int) -> str:
        number = int(self.number)
        return "largest object" if number == 0 else f"object {number} by size"

    def _missing(self, answer: ModelOutput, image: int, category: int, sizes: NDArray[Any]) -> str:
        which, name = in_images([image], answer.labels), answer.name(category)
        if not len(sizes):
            return (
                f"no pixel is predicted as {name!r}{which}, so there is no object of it; "
                f"ask for a class that is there ({there(answer, image)})"
            )
        if len(sizes) == 1:
            return f"no object {self.number!r} of {name!r}{which}: there is one, of {sizes[0]} pixels; give 0"
        largest = f"{', '.join(map(str, sizes[:8]))}{', ...' * (len(sizes) > 8)}"
        return (
            f"no object {self.number!r} of {name!r}{which}: there are {len(sizes)}, of {largest} pixels; "
            f"give a number from 0, the largest, to {len(sizes) - 1}"
        )


def connected(inside: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Tell the connected objects of a set of places apart by numbers from 1, 0 being outside; and count the places of each."""
    mask = inside.cpu().numpy()
    objects, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return objects, np.bincount(objects.ravel(), minlength=count + 1)[1:]


def ring(inside: Tensor, width: int) -> Tensor:
    """Find the places that lie outside a set, no farther than so many places away from it, along the axes or across them."""
    grown = ndimage.maximum_filter(inside.cpu().numpy(), size=2 * width + 1, mode="constant")
    return torch.from_numpy(grown).to(inside.device) & ~inside


def label_at(x: int | float, y: int | float, answer: ModelOutput, image: int) -> int:
    """Tell the class that is predicted at a point of the picture."""
    return int(answer.labels[image][cell_at(x, y, answer, image)])


def cell_at(x: int | float, y: int | float, answer: ModelOutput, image: int) -> tuple[int, int]:
    """Find the row and column of a dense model's output under a point of the picture; TargetError outside what was seen."""
    size = tuple(answer.logits.shape[2:])
    if len(size) != 2:
        raise TargetError(
            f"a point has x and y, and the output of {answer.model} has {len(size)} axes of places",
            remedy=Remedy("give targets.Object(number), or a mask: targets.Pixels(class, mask)"),
        )
    across, down = shares_at(x, y, answer, image)
    return min(int(down * size[0]), size[0] - 1), min(int(across * size[1]), size[1] - 1)


def shares_at(x: int | float, y: int | float, answer: ModelOutput, image: int) -> tuple[float, float]:
    """Tell where a point of the picture lies, in shares of what the model saw; TargetError outside of it."""
    if not all(isinstance(one, int | float | np.number) for one in (x, y)):
        raise TargetError(f"a point is two numbers, x to the right and y down, not {x!r} and {y!r}")
    rows, columns = answer.input_size
    picture: Shown | None = answer.pictures[image] if answer.pictures else None
    if picture is not None:
        shares = picture.place(float(x), float(y))
    else:
        shares = (x + 0.5) / columns, (y + 0.5) / rows
        shares = shares if all(0 <= share < 1 for share in shares) else None
    if shares is None:
        seen = picture.spelled() if picture is not None else f"the model's input, of {crossed((columns, rows))} pixels"
        raise TargetError(
            f"the point {x:g}, {y:g} (x to the right, y down) lies outside {seen}{in_images([image], answer.labels)}; "
            "give a point inside"
        )
    return shares
