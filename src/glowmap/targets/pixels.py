"""Targets about a set of pixels of a dense model's output."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.inputs import Mask, crop_masks, read_masks
from glowmap.outputs import ModelOutput, background_class
from glowmap.shapes import PixelSets, Scores, crossed
from glowmap.targets._class import ClassTarget, PinnedPixels, score_at
from glowmap.targets._target import Annotation, Target, empty_images, in_images
from glowmap.targets.classes import ClassLike, ClassPerImage, OutputValue, Predicted, as_class, class_child
from glowmap.targets.regions import At, Object, Point, Region, ring, shares_at


@dataclass(frozen=True)
class Pixels(Target):
    """A class at a set of pixels: the sum of its logits there (Vinogradova et al. 2020, arXiv:2002.11434, eq. 2).

    ``category`` is an index, a name or a target about a class, such as ``Contrast("car", "bus")``, whose score is then summed.
    ``where`` is a region (``At(x, y)``, ``Point(x, y)``, ``Object(number)``) or a mask: rows x columns, or batch x rows x columns
    for one mask per image; non-zero is inside. A mask has the size of the picture as it was given, of the model's input, or of
    its output. A mask of the picture's size (for all images alike: the size of all pictures) marks places of the picture, even if
    the input or the output has that size too and covers another part of the picture, because this was cropped or padded.
    Without ``where``: the pixels predicted as the class. Without a class, and for ``Predicted()`` in the class: the class
    predicted at the point, or at most pixels of the mask.

    With ``border``, a width in pixels of the output: the mean over the set minus the mean over the ring of this width around it.

    Raises TargetError for a model without pixels in its output, for an empty set, and for a set with nothing around it.
    """

    category: ClassLike | None = None
    where: Mask | Region | None = None
    _: KW_ONLY
    border: int = 0

    def score(self, output: ModelOutput) -> Scores:
        inside = self._inside(output)
        return score_at(self._target(output), output, inside, self._around(output, inside))

    def describe(self, output: ModelOutput, image: int) -> str:
        target = self._target(output)
        description = target.describe(output, image)
        if isinstance(self.where, Region):
            description += f" ({self.where.describe(output, image, target.class_index(output, image))})"
        elif self.where is not None:
            description += " (mask)"
        elif not self.border:
            description += " (predicted pixels)"
        return description + ", set off from its border" * bool(self.border)

    def pin(self, output: ModelOutput, image: int) -> PinnedPixels:
        inside = self._inside(output)
        around = self._around(output, inside)
        target = self._target(output).pin_class(output, image)
        ring_of_image = None if around is None else around[image]
        return PinnedPixels(target, inside[image], ring_of_image, self.describe(output, image))

    def cautions(self, output: ModelOutput) -> Sequence[str]:
        return self._target(output).cautions_at(output, self._inside(output))

    def children(self) -> Sequence[Target]:
        return (class_child(Predicted() if self.category is None else self.category),)

    def with_children(self, children: Sequence[Target]) -> "Pixels":
        return replace(self, category=children[0])

    def replace_prediction(self, replacement: Callable[[ClassTarget | None], Target]) -> "Pixels":
        return self  # the prediction is that at the pixels, which only a dense model has

    def annotations(self, output: ModelOutput, image: int) -> list[Annotation]:
        """Point at the region or mask. The predicted pixels are shown by the prediction."""
        where = self.where
        if where is None or len(output.input_size) != 2:
            return []
        point = [Annotation(point=shares_at(where.x, where.y, output, image))] if isinstance(where, At | Point) else []
        return point if isinstance(where, Point) else [Annotation(region=self._inside(output)[image].cpu()), *point]

    def _target(self, output: ModelOutput) -> ClassTarget:
        """Return the target about a class that is summed, with ``Predicted()`` replaced by the class predicted there."""
        if output.readers.are_detections:
            raise TargetError(
                f"Pixels needs class scores at pixels, and {output.model} returns detections",
                remedy=Remedy("give one: targets.Detection(number)", "give one: --box NUMBER"),
            )
        if output.logits.ndim < 3:
            raise TargetError(
                f"Pixels needs class scores at pixels, and {output.model} returns one score per class and image "
                f"({crossed(output.logits.shape)})",
                remedy=Remedy("pass the class alone as target", "give the class alone: --target CLASS"),
            )
        target = Predicted() if self.category is None else as_class(self.category)
        if isinstance(target, OutputValue) and isinstance(self.where, At | Object):
            raise TargetError(
                "a number that is no class has no objects", remedy=Remedy("give a mask, or targets.Point(x, y)")
            )
        return as_class(target.map_leaves(lambda leaf: self._predicted(output) if leaf.is_prediction else leaf))

    def _predicted(self, output: ModelOutput) -> ClassTarget:
        """Return the class that is predicted at the point or mask, image by image."""
        where = self.where
        if where is None:
            return Predicted()
        if isinstance(where, Region):
            return ClassPerImage(tuple(where.category(output, image) for image in range(output.batch)))
        masks = _resize_masks(where, output)
        return ClassPerImage(tuple(_most_frequent(output, image, mask) for image, mask in enumerate(masks)))

    def _inside(self, output: ModelOutput) -> PixelSets:
        target, where = self._target(output), self.where
        if where is None:
            return target.pixels(output)
        if isinstance(where, Region):
            images = range(output.batch)
            return torch.stack([where.pixels(output, image, target.class_index(output, image)) for image in images])
        inside = _resize_masks(where, output)
        empty = empty_images(inside)
        if empty:
            raise TargetError(
                f"the mask is empty{in_images(empty, inside)}; mark at least one pixel, inside the part of the picture that "
                f"the model sees and large enough for a cell of its output ({crossed(inside.shape[1:])})"
            )
        return inside

    def _around(self, output: ModelOutput, inside: PixelSets) -> PixelSets | None:
        """Return the ring around each set of pixels; None without a border."""
        if not is_whole_number(self.border, 0):
            raise TargetError(
                f"border is a width in pixels of the output, not {self.border!r}; give a whole number from 0"
            )
        if not self.border:
            return None
        around = torch.stack([ring(mask, int(self.border)) for mask in inside])
        empty = empty_images(around)
        if empty:
            raise TargetError(
                f"nothing lies around the pixels of {self.describe(output, empty[0])!r}{in_images(empty, inside)}: they are the "
                f"whole output ({crossed(inside.shape[1:])}); leave out border"
            )
        return around


def _most_frequent(output: ModelOutput, image: int, mask: Tensor) -> int:
    """Return the class that is predicted at most pixels of a mask; a background only where there is no other."""
    labels = output.labels[image][mask]
    counts = [(int((labels == index).sum()), index) for index in output.present(image)]  # a background comes last
    counts = [(count, index) for count, index in counts if count]
    if not counts:
        return 0  # a model with one class predicts nothing here, or the mask is empty, which _inside refuses
    background = background_class(output.class_names or ())
    objects = [(count, index) for count, index in counts if index != background]
    return max(objects or counts, key=lambda entry: entry[0])[1]


def _resize_masks(mask: Mask, output: ModelOutput) -> PixelSets:
    """Bring masks to the grid of the output, by nearest neighbour from the size of the picture or of the input."""
    logits = output.logits
    grid = tuple(logits.shape[2:])
    masks, per_image = read_masks(mask, axes=len(grid))
    for_batch = masks * len(logits) if not per_image else masks if len(masks) == len(logits) else []
    parts = crop_masks(for_batch, output.pictures, alike=not per_image)
    resized = [_resize_mask(mask, part, output, grid) for mask, part in zip(for_batch, parts, strict=True)]
    fitting = [mask for mask in resized if mask is not None]
    if not resized or len(fitting) < len(resized):
        shapes = ", ".join(dict.fromkeys(str(tuple(mask.shape)) for mask in masks))
        fact = f"there are {len(masks)} masks of shape {shapes}" if per_image else f"the mask has the shape {shapes}"
        raise TargetError(
            f"{fact}, but the output of {output.model} is {len(logits)} x {crossed(grid)}; "
            f"give {crossed(grid)} (the output), {crossed(output.input_size)} (the input) or the picture's own size, "
            "or one such mask for each image"
        )
    return torch.stack(fitting)


def _resize_mask(mask: Tensor, part: Tensor | None, output: ModelOutput, grid: tuple[int, ...]) -> Tensor | None:
    """Bring one mask to the grid of the output.

    ``part`` is the model's input cut out of a mask of the picture's size, None for other masks. Returns None for a mask of none
    of the sizes.
    """
    if part is None and tuple(mask.shape) not in (grid, output.input_size):
        return None
    visible = (mask if part is None else part).to(output.logits.device)
    if tuple(visible.shape) == grid:
        return visible
    return F.interpolate(visible[None, None].float(), grid, mode="nearest-exact")[0, 0] > 0
