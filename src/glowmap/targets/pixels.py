"""Questions about a set of pixels."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.inputs import Mask, parts_seen, read_masks
from glowmap.outputs import ModelOutput, background_class
from glowmap.shapes import PixelSets, Scores, crossed
from glowmap.targets._class import ClassQuestion, PinnedPixels, score_at
from glowmap.targets._target import Annotation, changed, in_images, of_nothing
from glowmap.targets.classes import Change, ClassLike, OfEach, OutputValue, Predicted, as_class, changed_class
from glowmap.targets.regions import At, Object, Point, Region, ring, shares_at


@dataclass(frozen=True)
class Pixels:
    """A class at a set of pixels: the sum of its logits there (Vinogradova et al. 2020, arXiv:2002.11434, eq. 2).

    ``category`` is an index, a name or a question about a class, such as ``Contrast("car", "bus")``, whose score is then summed.
    ``where`` is a region (``At(x, y)``, ``Point(x, y)``, ``Object(number)``) or a mask: rows x columns, or batch x rows x columns
    for a mask an image; non-zero is inside. A mask has the size of the picture as it was given, of the model's input, or of its
    output. One that has the picture's size (the size of all of them, where it is one mask for all) marks places of the picture,
    also where the input or the output is as large and covers another part of it, because it was cut or padded. Without either:
    the pixels predicted as the class. Without a class, and for a ``Predicted()`` in the question: the class predicted at the
    point, or at most pixels of the mask.

    With a ``border`` of so many pixels of the output, what sets the pixels off from their surroundings: the mean over them minus
    the mean over the ring of this width just outside.

    Raises TargetError for a model that does not answer for places, an empty set, and one with nothing around it.
    """

    category: ClassLike | None = None
    where: Mask | Region | None = None
    _: KW_ONLY
    border: int = 0

    def score(self, answer: ModelOutput) -> Scores:
        inside = self._inside(answer)
        return score_at(self._asked(answer), answer, inside, self._around(answer, inside))

    def describe(self, answer: ModelOutput, image: int) -> str:
        question = self._asked(answer)
        name = question.named(answer, image)
        if isinstance(self.where, Region):
            name += f" ({self.where.named(answer, image, question.chosen(answer, image))})"
        elif self.where is not None:
            name += " (mask)"
        elif not self.border:
            name += " (predicted pixels)"
        return name + ", set off from its border" * bool(self.border)

    def pin(self, answer: ModelOutput, image: int) -> PinnedPixels:
        inside = self._inside(answer)
        around = self._around(answer, inside)
        one = self._asked(answer).fixed(answer, image)
        return PinnedPixels(one, inside[image], None if around is None else around[image], self.describe(answer, image))

    def cautions(self, answer: ModelOutput) -> Sequence[str]:
        return self._asked(answer).doubts(answer, self._inside(answer))

    def with_parts(self, change: Change) -> "Pixels":
        return replace(self, category=changed_class(Predicted() if self.category is None else self.category, change))

    def annotations(self, answer: ModelOutput, image: int) -> list[Annotation]:
        """Point at the region or mask; all pixels of a class are seen in the prediction."""
        where = self.where
        if where is None or len(answer.input_size) != 2:
            return []
        point = [Annotation(point=shares_at(where.x, where.y, answer, image))] if isinstance(where, At | Point) else []
        return point if isinstance(where, Point) else [Annotation(region=self._inside(answer)[image].cpu()), *point]

    def _asked(self, answer: ModelOutput) -> ClassQuestion:
        """Read the class, or choose it for each image where none is named."""
        if answer.is_detector:
            raise TargetError(
                f"pixels were asked for, but {answer.model} answers with detections",
                remedy=Remedy("ask about one: targets.Detection(number)", "ask about one: --box NUMBER"),
            )
        if answer.logits.ndim < 3:
            raise TargetError(
                f"pixels were asked for, but {answer.model} gives one answer per image "
                f"({crossed(answer.logits.shape)})",
                remedy=Remedy("pass the class alone as target", "ask about the class alone: --target CLASS"),
            )
        question = Predicted() if self.category is None else as_class(self.category)
        if isinstance(question, OutputValue) and isinstance(self.where, At | Object):
            raise TargetError(
                "a number that is no class has no objects",
                remedy=Remedy("give a mask, or targets.Point(x, y)"),
            )
        return as_class(changed(question, lambda one: self._there(answer) if isinstance(one, Predicted) else one))

    def _there(self, answer: ModelOutput) -> ClassQuestion:
        """Tell the class that is predicted at the point or mask, image by image; elsewhere it is the model's own answer."""
        where = self.where
        if where is None:
            return Predicted()
        if isinstance(where, Region):
            return OfEach(tuple(where.category(answer, image) for image in range(answer.batch)))
        return OfEach(tuple(_most(answer, image, mask) for image, mask in enumerate(_fitted(where, answer))))

    def _inside(self, answer: ModelOutput) -> PixelSets:
        question, where = self._asked(answer), self.where
        if where is None:
            return question.inside(answer)
        if isinstance(where, Region):
            images = range(answer.batch)
            return torch.stack([where.places(answer, image, question.chosen(answer, image)) for image in images])
        inside = _fitted(where, answer)
        empty = of_nothing(inside)
        if empty:
            raise TargetError(
                f"the mask is empty{in_images(empty, inside)}; mark at least one pixel, inside the part of the picture that "
                f"the model sees and large enough for a cell of its output ({crossed(inside.shape[1:])})"
            )
        return inside

    def _around(self, answer: ModelOutput, inside: PixelSets) -> PixelSets | None:
        """Find the ring around each set of pixels, where one is asked for."""
        if not is_whole_number(self.border, 0):
            raise TargetError(
                f"a border is so many pixels of the output, not {self.border!r}; give a whole number from 0"
            )
        if not self.border:
            return None
        around = torch.stack([ring(part, int(self.border)) for part in inside])
        bare = of_nothing(around)
        if bare:
            raise TargetError(
                f"nothing lies around the pixels of {self.describe(answer, bare[0])!r}{in_images(bare, inside)}: they are all "
                f"that the model answers for ({crossed(inside.shape[1:])}); ask without a border"
            )
        return around


def _most(answer: ModelOutput, image: int, mask: Tensor) -> int:
    """Tell the class that is predicted at most pixels of a mask, a background only where there is nothing else."""
    seen = answer.labels[image][mask]
    counted = [(int((seen == index).sum()), index) for index in answer.present(image)]  # a background comes last
    here = [(count, index) for count, index in counted if count]
    if not here:
        return 0  # nothing is predicted by a model with one class, or the mask is empty, which is refused elsewhere
    background = background_class(answer.class_names or ())
    others = [one for one in here if one[1] != background]
    return max(others or here, key=lambda one: one[0])[1]


def _fitted(mask: Mask, answer: ModelOutput) -> PixelSets:
    """Bring a mask to the output's size: by nearest neighbour from the picture's or the input's size, or as it is."""
    logits = answer.logits
    size = tuple(logits.shape[2:])
    given, several = read_masks(mask, axes=len(size))
    masks = given * len(logits) if not several else given if len(given) == len(logits) else []
    seen = parts_seen(masks, answer.pictures, alike=not several)
    fitted = [_fit_one(one, part, answer, size) for one, part in zip(masks, seen, strict=True)]
    whole = [part for part in fitted if part is not None]
    if not fitted or len(whole) < len(fitted):
        spelled = crossed(size)
        shapes = ", ".join(dict.fromkeys(str(tuple(one.shape)) for one in given))
        came = f"the mask has the shape {shapes}" if not several else f"there are {len(given)} masks of shape {shapes}"
        raise TargetError(
            f"{came}, but the output of {answer.model} is {len(logits)} x {spelled}; "
            f"give {spelled} (the output), {crossed(answer.input_size)} (the input) or the picture's own size, "
            "or one such mask for each image"
        )
    return torch.stack(whole)


def _fit_one(mask: Tensor, part: Tensor | None, answer: ModelOutput, size: tuple[int, ...]) -> Tensor | None:
    """Read a mask as of the picture, if it has its size, else as of what the model saw; None where it has no such size."""
    if part is None and tuple(mask.shape) not in (size, answer.input_size):
        return None
    seen = (mask if part is None else part).to(answer.logits.device)
    fits = tuple(seen.shape) == size
    return seen if fits else F.interpolate(seen[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
