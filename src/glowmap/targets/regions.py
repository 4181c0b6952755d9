"""Regions of a dense model's output: an object by a point on it or by its size, and a single place."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.inputs import Drawable, Picture
from glowmap.outputs import ModelOutput
from glowmap.shapes import crossed
from glowmap.targets._class import present_classes
from glowmap.targets._target import in_images
from glowmap.targets.classes import Predicted


class Region(ABC):
    """A set of pixels of a dense model's output that depends on the picture and on the model's prediction."""

    @abstractmethod
    def pixels(self, output: ModelOutput, image: int, category: int) -> Tensor:
        """Return the mask of its pixels on the grid of the output, for a target about this class."""

    @abstractmethod
    def describe(self, output: ModelOutput, image: int, category: int) -> str:
        """Return its description in a caption, for a target about this class."""

    @abstractmethod
    def category(self, output: ModelOutput, image: int) -> int:
        """Return the class that is predicted there, for a target without a class."""


@dataclass(frozen=True)
class At(Region):
    """The object under a point of the picture: the connected pixels of the class predicted there, corners counting as contact.

    ``x`` goes to the right and ``y`` down, in pixels of the picture as it was given (of the model's input, if a tensor was
    given); a whole number is the middle of a pixel. Raises TargetError for a point outside the part that the model sees, and
    where a model with one class predicts nothing.
    """

    x: int | float
    y: int | float

    def pixels(self, output: ModelOutput, image: int, category: int) -> Tensor:
        labels = output.labels[image]
        cell = cell_at(self.x, self.y, output, image)
        objects, _ = connected(labels == self._label(output, image))
        return torch.from_numpy(objects == objects[cell]).to(labels.device)

    def category(self, output: ModelOutput, image: int) -> int:
        return self._label(output, image)

    def describe(self, output: ModelOutput, image: int, category: int) -> str:
        label = self._label(output, image)
        another_class = f"in {'the ' * (output.class_names is not None)}{output.name(label)}"
        return f"{'object' if label == category else another_class} at {self.x:g}, {self.y:g}"

    def _label(self, output: ModelOutput, image: int) -> int:
        label = label_at(self.x, self.y, output, image)
        if label < 0:
            raise TargetError(
                f"nothing is predicted at {self.x:g}, {self.y:g}{in_images([image], output.labels)}",
                remedy=Remedy(
                    "give a point on a predicted pixel, targets.Point(x, y) for that place alone, or a mask: "
                    "targets.Pixels(class, mask)",
                    "give a point on a predicted pixel",
                ),
            )
        return label


@dataclass(frozen=True)
class Point(Region):
    """The one place of the model's output under a point of the picture; ``x`` and ``y`` as in :class:`At`.

    Raises TargetError for a point outside the part that the model sees.
    """

    x: int | float
    y: int | float

    def pixels(self, output: ModelOutput, image: int, category: int) -> Tensor:
        mask = torch.zeros_like(output.labels[image], dtype=torch.bool)
        mask[cell_at(self.x, self.y, output, image)] = True
        return mask

    def category(self, output: ModelOutput, image: int) -> int:
        # a model with one class predicts -1 where that is absent; the target is this class all the same
        return max(label_at(self.x, self.y, output, image), 0)

    def describe(self, output: ModelOutput, image: int, category: int) -> str:
        return f"point {self.x:g}, {self.y:g}"


@dataclass(frozen=True)
class Object(Region):
    """A connected object of a class, by its size: 0 is the largest. Corners count as contact, and there may be any axes.

    Without a class, an object of the class predicted at most pixels. Raises TargetError where there are fewer objects.
    """

    number: int = 0

    def pixels(self, output: ModelOutput, image: int, category: int) -> Tensor:
        labels = output.labels[image]
        objects, sizes = connected(labels == category)
        order = np.argsort(-sizes, kind="stable")
        number = self.number
        if not is_whole_number(number, 0, len(sizes)):
            raise TargetError(self._missing(output, image, category, sizes[order]))
        return torch.from_numpy(objects == order[number] + 1).to(labels.device)

    def category(self, output: ModelOutput, image: int) -> int:
        return Predicted().class_index(output, image)

    def describe(self, output: ModelOutput, image: int, category: int) -> str:
        number = int(self.number)
        return "largest object" if number == 0 else f"object {number} by size"

    def _missing(self, output: ModelOutput, image: int, category: int, sizes: NDArray[Any]) -> str:
        where, name = in_images([image], output.labels), output.name(category)
        if not len(sizes):
            return (
                f"no pixel is predicted as {name!r}{where}, so there is no object of it; "
                f"give a class that is predicted ({present_classes(output, image)})"
            )
        if len(sizes) == 1:
            return f"no object {self.number!r} of {name!r}{where}: there is one, of {sizes[0]} pixels; give 0"
        largest = f"{', '.join(map(str, sizes[:8]))}{', ...' * (len(sizes) > 8)}"
        return (
            f"no object {self.number!r} of {name!r}{where}: there are {len(sizes)}, of {largest} pixels; "
            f"give a number from 0, the largest, to {len(sizes) - 1}"
        )


def connected(inside: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Label the connected objects of a mask with numbers from 1 (0 is outside), and return the number of pixels of each."""
    mask = inside.cpu().numpy()
    objects, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return objects, np.bincount(objects.ravel(), minlength=count + 1)[1:]


def ring(inside: Tensor, width: int) -> Tensor:
    """Return the pixels outside a mask that are at most ``width`` pixels away from it, along the axes or diagonally."""
    grown = ndimage.maximum_filter(inside.cpu().numpy(), size=2 * width + 1, mode="constant")
    return torch.from_numpy(grown).to(inside.device) & ~inside


def label_at(x: int | float, y: int | float, output: ModelOutput, image: int) -> int:
    """Return the class that is predicted at a point of the picture."""
    return int(output.labels[image][cell_at(x, y, output, image)])


def cell_at(x: int | float, y: int | float, output: ModelOutput, image: int) -> tuple[int, int]:
    """Return the row and column of a dense model's output under a point of the picture."""
    grid = tuple(output.logits.shape[2:])
    if len(grid) != 2:
        raise TargetError(
            f"a point has x and y, and the output of {output.model} has {len(grid)} axes of places",
            remedy=Remedy("give targets.Object(number), or a mask: targets.Pixels(class, mask)"),
        )
    across, down = shares_at(x, y, output, image)
    return min(int(down * grid[0]), grid[0] - 1), min(int(across * grid[1]), grid[1] - 1)


def shares_at(x: int | float, y: int | float, output: ModelOutput, image: int) -> tuple[float, float]:
    """Return where a point of the picture lies, in shares of the model's input. Raises TargetError for a point outside."""
    if not all(isinstance(coordinate, int | float | np.number) for coordinate in (x, y)):
        raise TargetError(f"a point is two numbers, x to the right and y down, not {x!r} and {y!r}")
    rows, columns = output.input_size
    picture: Drawable | None = output.pictures[image] if output.pictures else None
    shares: tuple[float, float] | None = None
    if isinstance(picture, Picture):
        shares = picture.locate(float(x), float(y))
    elif picture is None:
        shares = (x + 0.5) / columns, (y + 0.5) / rows
        shares = shares if all(0 <= share < 1 for share in shares) else None
    if shares is None:
        extent = (
            picture.describe() if picture is not None else f"the model's input, of {crossed((columns, rows))} pixels"
        )
        raise TargetError(
            f"the point {x:g}, {y:g} (x to the right, y down) lies outside {extent}{in_images([image], output.labels)}; "
            "give a point inside"
        )
    return shares
