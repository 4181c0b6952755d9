"""Reading masks: arrays, tensors and pictures become tensors of bool."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.inputs.pictures import Drawable

Mask: TypeAlias = NDArray[Any] | Tensor | Image.Image | Sequence[Any]


def read_masks(mask: Mask, *, axes: int) -> tuple[list[Tensor], bool]:
    """Read one mask of so many spatial ``axes``, or one mask for each image. Non-zero is inside.

    Returns the masks, and whether there is one for each image: a list of them, of any sizes, or an array with one axis more.
    Raises TargetError for values that are not finite numbers.
    """
    if isinstance(mask, list | tuple):
        return [_as_booleans(image_mask) for image_mask in mask], True
    booleans = _as_booleans(mask)
    return (list(booleans), True) if booleans.ndim == axes + 1 else ([booleans], False)


def _as_booleans(mask: Mask) -> Tensor:
    values = (
        mask.detach().cpu().numpy() if isinstance(mask, Tensor) and mask.dtype != torch.bfloat16 else np.asarray(mask)
    )
    if values.dtype.kind not in "biuf":
        raise TargetError(f"a mask is an array, a tensor or a picture, not {type(mask).__name__}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise TargetError("the mask has NaN or infinite values; give finite numbers, where non-zero is inside")
    return torch.from_numpy(np.asarray(values != 0))


def crop_masks(masks: Sequence[Tensor], pictures: Sequence[Drawable], *, alike: bool) -> list[Tensor | None]:
    """Crop masks of the pictures' sizes to the visible parts, image by image; None for a mask of another size.

    ``alike`` says that the masks are one mask for all images. It is cropped only if all pictures have its size.
    """
    if not pictures or not masks:
        return [None] * len(masks)
    cropped = [picture.crop_mask(mask) for mask, picture in zip(masks, pictures, strict=True)]
    return [None] * len(masks) if alike and any(mask is None for mask in cropped) else cropped
