"""What a model answered, and how to read it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.shapes import Labels, Logits
from glowmap.shelf import near_names

FitsMask = Callable[[Tensor, int], Tensor | None]  # (mask of a picture, which picture) -> the part that the model saw


@dataclass(frozen=True)
class Answer:
    """What the model answered, and how to read it."""

    raw: Any
    batch: int
    read_logits: Callable[[Any], Tensor]
    class_names: Sequence[str] | None = None
    input_size: tuple[int, ...] = ()
    model: str = "the model"
    # where the model saw only a part of each picture: (mask at a picture's size, its index) -> the part seen, or None
    seen_part: FitsMask | None = field(default=None, repr=False)

    @cached_property
    def logits(self) -> Logits:
        """The class scores, batch x category (x rows x columns for a dense model)."""
        logits = self.read_logits(self.raw)
        if not logits.is_floating_point() or logits.layout != torch.strided:
            kind = f"{str(logits.dtype).removeprefix('torch.')} ({str(logits.layout).removeprefix('torch.')})"
            raise TargetError(
                f"the output of {self.model} is {kind}, which are no class scores; "
                "pass target=a callable from the output to one floating score per image"
            )
        if logits.ndim < 2 or len(logits) != self.batch:
            raise TargetError(
                f"the output of {self.model} has the shape {tuple(logits.shape)}, which is not {self.batch} images x classes; "
                "pass target=a callable from the output to one score per image"
            )
        if logits.ndim > 2 and logits[0, 0].numel() == 1:  # a classifier that ends in a convolution
            logits = logits.flatten(1)
        if self.input_size and logits.ndim > 2 and logits.ndim - 2 != len(self.input_size):
            raise TargetError(
                f"the output of {self.model} has the shape {tuple(logits.shape)}, which is neither images x classes nor that at "
                f"{len(self.input_size)} axes of places; pass target=a callable from the output to one score per image"
            )
        if self.class_names is not None and len(self.class_names) != logits.shape[1]:
            raise TargetError(
                f"there are {len(self.class_names)} class names for the {logits.shape[1]} classes of {self.model}; "
                "give one name for each class, in the model's order"
            )
        return logits

    @cached_property
    def labels(self) -> Labels:
        """The class predicted at every pixel; with a single class, 0 where its logit is positive and -1 elsewhere."""
        logits = self.logits.detach()
        return (logits[:, 0] > 0).long() - 1 if logits.shape[1] == 1 else logits.argmax(1)

    def present(self, image: int) -> list[int]:
        """List the classes that a dense model predicts in an image, the largest first, a background last."""
        indices, counts = torch.unique(self.labels[image], return_counts=True)
        ordered = [int(index) for index in indices[counts.argsort(descending=True, stable=True)] if index >= 0]
        background = background_class(self.class_names or ())
        return sorted(ordered, key=lambda index: index == background)

    def name(self, index: int) -> str:
        """Call a class by its name, or by its number where the names are unknown."""
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def index(self, category: int | str) -> int:
        """Find a class by index or name (case matters only where it must); unknown or ambiguous is a TargetError."""
        count = self.logits.shape[1]
        if not isinstance(category, str):
            if not isinstance(category, int | np.integer) or isinstance(category, bool):
                raise TargetError(
                    f"a class is an index or a name, not {type(category).__name__}; Pixels takes the class first"
                )
            if not 0 <= category < count:
                raise TargetError(f"no class {category}: {self.model} has {count}, from 0 to {count - 1}")
            return int(category)
        if self.class_names is None:
            raise TargetError(
                f"class {category!r} was asked for by name, but the class names of {self.model} are unknown; "
                f"give the index (0 to {count - 1}), or the names: glowmap.load(model, classes=...)"
            )
        wanted = category.casefold()
        for fits in (category.__eq__, lambda name: name.casefold() == wanted, lambda name: wanted in _synonyms(name)):
            found = [i for i, name in enumerate(self.class_names) if fits(name)]
            if len(found) == 1:
                return found[0]
            if found:
                raise TargetError(
                    f"the name {category!r} stands for the classes {found}; give the index of the one you mean"
                )
        synonyms = [part.strip() for name in self.class_names for part in name.split(",")]
        raise TargetError(f"no class {category!r} in {self.model}; {near_names(category, synonyms)}")


def _synonyms(name: str) -> list[str]:
    """Split a name as lists of ImageNet's classes have them: "lynx, catamount"."""
    return [synonym.strip().casefold() for synonym in name.split(",")]


def background_class(names: Sequence[str]) -> int | None:
    """Tell which class stands for nothing in particular: the first, where its name says so."""
    words = ("background", "unlabelled", "unlabeled", "void")
    return 0 if names and names[0].strip("_").casefold() in words else None
