"""A batch: everything that one forward pass takes, in tensors, tuples and dicts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from glowmap import tree
from glowmap.cautions import Caution, caution_kind
from glowmap.errors import InputError
from glowmap.inputs.pictures import Drawable, Picture, Signal, Volume
from glowmap.shapes import Images, crossed

PICTURE_KEYWORDS = ("pixel_values", "image", "images")  # the keywords under which libraries take pictures


FIRST_INPUT = caution_kind("first-input", "info", "Reorder the model's arguments to explain another of its inputs.")


@dataclass(frozen=True)
class Batch:
    """The arguments of one forward pass, the image tensor among them, and the pictures it was made from."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    images: Images
    pictures: tuple[Drawable, ...]

    def copied(self) -> "Batch":
        """Copy every tensor once, so that the model may write into its input."""
        tensors = {id(tensor): tensor for tensor in tree.leaves([self.arguments, self.keywords, self.images])}
        copies = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        arguments, keywords = tree.map([self.arguments, self.keywords], lambda tensor: copies[id(tensor)])
        return Batch(arguments, keywords, copies[id(self.images)], self.pictures)

    def cautions(self) -> list[Caution]:
        """Say which of several similar tensors is taken for the images."""
        tensors = {id(tensor): tensor for tensor in tree.leaves([self.arguments, self.keywords])}
        similar = [
            tensor for tensor in tensors.values() if tensor.is_floating_point() and tensor.ndim == self.images.ndim
        ]
        if len(similar) < 2:
            return []
        shapes = ", ".join(crossed(tensor.shape) for tensor in similar)
        axes = self.images.ndim
        return [FIRST_INPUT(f"of {len(similar)} inputs with {axes} axes ({shapes}) the first is taken for the images")]

    def changed(self, change: Callable[[Images], Images]) -> "Batch":
        """Replace the images, wherever the arguments hold them, by ``change(images)``."""
        images = change(self.images)
        arguments, keywords = tree.replace([self.arguments, self.keywords], self.images, images)
        return Batch(arguments, keywords, images, self.pictures)


def as_batch(images: Any, expected: Callable[[], str]) -> Batch:
    """Read a model's own input: a tensor, a tuple of arguments, or a dict (or other mapping) of keyword arguments.

    Arguments may be lists, dicts, named tuples and dataclasses of tensors. The image tensor is the floating tensor with the most
    axes, of three or more; of several, one under a keyword of ``PICTURE_KEYWORDS``, else the first. Raises InputError for NaN,
    for no image tensor, and for pictures, which a module without preprocessing cannot take (``expected()`` says what it takes).
    """
    if isinstance(images, list) and any(isinstance(image, Tensor) for image in images):
        raise InputError(
            "a list of tensors is ambiguous; torch.stack(...) a batch, or give a tuple of the model's arguments"
        )
    has_keywords = isinstance(images, Mapping) and not is_dataclass(images)
    has_arguments = isinstance(images, tuple) and not hasattr(images, "_fields")  # a named tuple is one argument
    arguments = images if has_arguments else () if has_keywords else (images,)
    keywords = dict(images.items()) if has_keywords else {}
    tensors = list(tree.leaves([arguments, keywords]))
    if not tensors:
        raise InputError(f"the input is a {type(images).__name__}, but {expected()}")
    image = _find_images(tensors, keywords)
    if image.ndim != 4:  # four axes are pictures; three or five may be something else
        _check_axes(image, [*arguments, *keywords.values()])
    if 0 in image.shape:
        raise InputError(f"the input is empty (shape {tuple(image.shape)}); give at least one image")
    if not image.isfinite().all():
        numbers = [str(number) for number, values in enumerate(image) if not values.isfinite().all()]
        raise InputError(f"the input has NaN or infinite values in image {', '.join(numbers[:10])}; replace them")
    # Copies, as a model may write into its input, and autograd may not save tensors made in inference mode.
    return Batch(arguments, keywords, image, pictures_of(image)).copied()


def _find_images(tensors: list[Tensor], keywords: Mapping[str, Any]) -> Tensor:
    """Return the image tensor among the tensors of a model's arguments."""
    candidates = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim >= 3]
    if not candidates:
        shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)
        raise InputError(
            f"no tensor of the input can be images ({shapes}); give batch x colour x rows x columns in floating point"
        )
    named = [keywords[name] for name in keywords if name in PICTURE_KEYWORDS]
    named = [value for value in named if any(value is tensor for tensor in candidates)]
    images: Tensor = max([*named, *candidates], key=lambda tensor: tensor.ndim)  # the first of those with most axes
    return images


def _check_axes(images: Tensor, arguments: list[Any]) -> None:
    """Raise InputError for a clip with its frames first, and for one of a list of pictures that have no batch axis."""
    if images.ndim == 5 and images.shape[2] in (1, 3) and images.shape[1] > 3:
        raise InputError(
            f"a clip of {crossed(images.shape)} has its frames before its colours, and Glowmap reads batch x colours x frames x "
            "rows x columns; wrap the model in a module whose forward(clips) returns model(clips.transpose(1, 2))"
        )
    lists = (part for part in arguments if isinstance(part, list) and any(tensor is images for tensor in part))
    neighbours = next(lists, [])
    if images.ndim == 3 and (len(neighbours) > 1 or (neighbours and images.shape[0] in (1, 3))):
        raise InputError(
            f"the tensors of {crossed(images.shape)} in a list seem to be single pictures, without a batch axis; "
            "torch.stack(...) them to one tensor of batch x colour x rows x columns"
        )


def pictures_of(images: Images) -> tuple[Drawable, ...]:
    """Convert a batch of tensors to pictures, clips, volumes or signals, one for each image.

    Values within [0, 1] are kept; others are scaled from the image's minimum and maximum to [0, 1]. Three channels are colours;
    any other number of them is averaged to grey. A signal keeps its values. More than three spatial axes give no pictures.
    """
    axes = images.ndim - 2
    if axes == 1:
        return tuple(Signal(image.detach().float().cpu().numpy().copy()) for image in images)
    if axes > 3:
        return ()
    values = images.detach().float()
    if values.shape[1] != 3:
        values = values.mean(1, keepdim=True)
    low, high = values.flatten(1).aminmax(dim=1)
    in_unit = (low >= 0) & (high <= 1)
    low, high = (
        edge.reshape(-1, *[1] * (axes + 1)) for edge in (low.masked_fill(in_unit, 0.0), high.masked_fill(in_unit, 1.0))
    )
    scaled = (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny) * 255
    pixels = np.ascontiguousarray(scaled.round().byte().movedim(1, -1).cpu().numpy())
    if axes == 3:
        return tuple(map(Volume, pixels))
    whole = (0.0, 0.0, float(images.shape[3]), float(images.shape[2]))
    colours = pixels if pixels.shape[-1] == 3 else pixels.repeat(3, -1)  # one channel is grey
    return tuple(Picture(Image.fromarray(colour), whole) for colour in colours)
