"""What one forward pass takes, made of tensors, tuples and dicts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from torch import Tensor

from glowmap import tree
from glowmap.errors import InputError
from glowmap.inputs.pictures import Drawable, pictures_of
from glowmap.shapes import Images, crossed

PICTURE_KEYWORDS = ("pixel_values", "image", "images")  # the keywords under which libraries take pictures


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes: the model's arguments, the image tensor among them, and the pictures it came from."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    images: Images
    pictures: tuple[Drawable, ...]

    def copied(self) -> "Batch":
        """Copy every tensor once, so that the model may write into what it is given."""
        own: dict[int, Tensor] = {}

        def copy_once(tensor: Tensor) -> Tensor:
            if id(tensor) not in own:
                own[id(tensor)] = tensor.detach().clone()
            return own[id(tensor)]

        arguments, keywords = tree.map([self.arguments, self.keywords], copy_once)
        return Batch(arguments, keywords, copy_once(self.images), self.pictures)

    def changed(self, change: Callable[[Images], Images]) -> "Batch":
        """Copy with other images, and whatever else the model takes as it was."""
        new = change(self.images)
        arguments, keywords = tree.replace([self.arguments, self.keywords], self.images, new)  # wherever it is given
        return Batch(arguments, keywords, new, self.pictures)


def as_batch(images: Any, expected: str) -> Batch:
    """Take a model's own input as it is: a tensor, a tuple of arguments, or a dict (or other mapping) of keyword arguments.

    The tensors may stand in lists, dicts, named tuples and dataclasses among them. The image tensor is the first floating
    tensor of three axes or more, of those with most axes. Raises InputError for NaN, for no image tensor, and for pictures,
    which a bare module cannot take (``expected`` says what can).
    """
    if isinstance(images, list) and any(isinstance(image, Tensor) for image in images):
        raise InputError(
            "a list of tensors is ambiguous; torch.stack(...) a batch, or give a tuple of the model's arguments"
        )
    by_name = isinstance(images, Mapping) and not is_dataclass(images)
    several = isinstance(images, tuple) and not hasattr(images, "_fields")  # a named tuple is one argument
    arguments = images if several else () if by_name else (images,)
    keywords = dict(images.items()) if by_name else {}
    image = _image_in([*arguments, *keywords.values()], keywords, f"a {type(images).__name__} came, but {expected}")
    _check_values(image)
    # A model may write into its input (and autograd may not save what inference mode made), so it gets copies.
    return Batch(arguments, keywords, image, pictures_of(image)).copied()


def _image_in(given: list[Any], keywords: Mapping[str, Any], expected: str) -> Tensor:
    """Find the image tensor among what a model is given, wherever it stands."""
    tensors = list(tree.leaves(given))
    maps = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.ndim >= 3]
    if not tensors:
        raise InputError(expected)
    if not maps:
        shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)
        raise InputError(
            f"no image among the tensors given ({shapes}); give batch x colour x rows x columns in floating point"
        )
    named = [value for key, value in keywords.items() if key in PICTURE_KEYWORDS and any(value is one for one in maps)]
    image: Tensor = max([*named, *maps], key=lambda tensor: tensor.ndim)  # the first of those with most axes
    if image.ndim == 5 and image.shape[2] in (1, 3) and image.shape[1] > 3:
        raise InputError(
            f"a clip of {crossed(image.shape)} has its frames before its colours; here it is batch x colours x frames x rows x "
            "columns: wrap the model in a module whose forward(clips) returns model(clips.transpose(1, 2))"
        )
    beside = next((one for one in given if isinstance(one, list) and any(part is image for part in one)), [])
    if image.ndim == 3 and (len(beside) > 1 or (beside and image.shape[0] in (1, 3))):
        raise InputError(
            f"a list of tensors of {crossed(image.shape)} may be pictures, one each, which have no batch axis; "
            "torch.stack(...) them to one tensor of batch x colour x rows x columns"
        )
    return image


def _check_values(images: Tensor) -> None:
    if 0 in images.shape:
        raise InputError(f"the input is empty (shape {tuple(images.shape)}); give at least one image")
    if not images.isfinite().all():
        wrong = [i for i, image in enumerate(images) if not image.isfinite().all()]
        raise InputError(
            f"the input holds NaN or infinity in image {', '.join(map(str, wrong[:10]))}; mend it before asking"
        )
