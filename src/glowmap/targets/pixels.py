"""Questions about a set of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.shapes import PixelSets, Scores, crossed
from glowmap.targets._answer import Answer
from glowmap.targets._target import in_images

Mask: TypeAlias = NDArray[Any] | Tensor | Image.Image | Sequence[Any]


@dataclass(frozen=True)
class Pixels:
    """A class at a set of pixels: the sum of its logits there (Vinogradova et al. 2020, arXiv:2002.11434, eq. 2).

    ``mask`` is rows x columns, or batch x rows x columns for a mask an image; non-zero is inside. It has the size of the
    model's output, of its input, or of the picture. Without a mask: the pixels predicted as this class.
    """

    category: int | str
    mask: Mask | None = None

    def score(self, answer: Answer) -> Scores:
        index = answer.index(self.category)
        logits = answer.logits
        if logits.ndim < 3:
            raise TargetError(
                f"pixels were asked for, but {answer.model} gives one answer per image "
                f"({crossed(logits.shape)}); pass the class alone as target"
            )
        inside = self._inside(answer, index)
        return summed(logits[:, index], inside)

    def wording(self, answer: Answer, image: int) -> str:
        where = "predicted pixels" if self.mask is None else "mask"
        return f"{answer.name(answer.index(self.category))} ({where})"

    def settled(self, answer: Answer, image: int) -> "Pixels":
        index = answer.index(self.category)
        if self.mask is None:
            return Pixels(index, answer.labels[image] == index)
        return Pixels(index, _fitted(self.mask, answer)[image])

    def _inside(self, answer: Answer, index: int) -> PixelSets:
        inside = answer.labels == index if self.mask is None else _fitted(self.mask, answer)
        empty = [image for image, part in enumerate(inside) if not part.any()]
        if empty and self.mask is None:
            raise TargetError(
                f"no pixel is predicted as {answer.name(index)!r}{in_images(empty, inside)}; "
                f"ask for a class that is there ({_present(answer, empty[0])}), or give a mask: targets.Pixels(class, mask)"
            )
        if empty:
            raise TargetError(
                f"the mask is empty{in_images(empty, inside)}; mark at least one pixel, inside the part of the picture that "
                f"the model sees and large enough for a cell of its output ({crossed(inside.shape[1:])})"
            )
        return inside


def _fitted(mask: Mask, answer: Answer) -> PixelSets:
    """Bring a mask to the output's size: as it is, or by nearest neighbour from the input's or the picture's size."""
    logits = answer.logits
    size = tuple(logits.shape[2:])
    given, several = read_masks(mask, axes=len(size))
    masks = given * len(logits) if not several else given if len(given) == len(logits) else []
    fitted = [_fit_one(part.to(logits.device), answer, i, size) for i, part in enumerate(masks)]
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


def read_masks(mask: Mask, *, axes: int) -> tuple[list[Tensor], bool]:
    """Read a mask (non-zero is inside) of so many axes, or one for each image; and say whether there are several.

    Several are a list, of any sizes, or have one axis more. Raises TargetError for what holds no numbers.
    """
    if isinstance(mask, list | tuple):
        return [_as_booleans(one) for one in mask], True
    booleans = _as_booleans(mask)
    return (list(booleans), True) if booleans.ndim == axes + 1 else ([booleans], False)


def _as_booleans(mask: Mask) -> Tensor:
    values = (
        mask.detach().cpu().numpy() if isinstance(mask, Tensor) and mask.dtype != torch.bfloat16 else np.asarray(mask)
    )
    if values.dtype.kind not in "biuf":
        raise TargetError(f"a mask is an array, a tensor or a picture of numbers, not {type(mask).__name__}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise TargetError("the mask holds NaN or infinity; give numbers, of which non-zero is inside")
    return torch.from_numpy(np.asarray(values != 0))


def _fit_one(mask: Tensor, answer: Answer, image: int, size: tuple[int, ...]) -> Tensor | None:
    if tuple(mask.shape) == size:
        return mask
    if tuple(mask.shape) != answer.input_size:
        part = answer.pictures[image].part_of(mask) if answer.pictures else None
        if part is None:
            return None
        mask = part
    return F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0] > 0


def _present(answer: Answer, image: int = 0) -> str:
    """Name the classes that a dense model predicts in an image, with the share of the pixels of each."""
    labels = answer.labels[image]
    shares = [f"{answer.name(i)} {(labels == i).float().mean():.1%}" for i in answer.present(image)[:5]]
    return ", ".join(shares) or "none"


def summed(logits: Tensor, inside: Tensor) -> Scores:
    """Sum the logits of a set of pixels; in half precision such sums overflow."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return (wide * inside).flatten(1).sum(1)
