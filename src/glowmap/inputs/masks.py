"""Masks in: arrays, tensors and pictures become sets of places."""

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


def crop_masks(masks: Sequence[Tensor], pictures: Sequence[Drawable], *, alike: bool) -> list[Tensor | None]:
    """Cut masks of the pictures' own sizes down to what the model saw, image by image; None for those of another size.

    Where it is one mask for all (``alike``), it is read in one way: as of the pictures only where all of them have its size.
    """
    if not pictures or not masks:
        return [None] * len(masks)
    parts = [picture.crop_mask(mask) for mask, picture in zip(masks, pictures, strict=True)]
    return [None] * len(masks) if alike and any(part is None for part in parts) else parts
