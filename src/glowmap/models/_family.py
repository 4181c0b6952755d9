"""What a family is, and what comes of it: a model that can be asked about pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from glowmap.errors import InputError, ModelError
from glowmap.images import Batch, Picture, PictureLike, as_batch, read_pictures
from glowmap.shelf import Shelf

Colours: TypeAlias = float | Sequence[float]

RANDOM = "the weights are random: the map shows how the network is wired, not anything it has learned"


@runtime_checkable
class Preprocess(Protocol):
    """How a picture becomes the model's input (colour x rows x columns), and which part of the picture goes in."""

    def normalised(self, mean: Colours | None, std: Colours | None) -> "Preprocess":
        """Copy with another mean or standard deviation; None keeps the own one."""
        ...

    @property
    def mean(self) -> Colours:
        """What is subtracted from the colours in [0, 1]."""

    @property
    def std(self) -> Colours:
        """What the colours are divided by."""

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]: ...


@dataclass(frozen=True)
class Model:
    """A module with what one must know to ask it about pictures.

    ``preprocess`` turns a picture into the module's input; without it the model takes ready-made tensors alone.
    ``class_names`` are in the order of the module's outputs; ``notes`` go with every explanation. ``layer`` is the one to
    explain where nobody names another.
    """

    module: nn.Module
    name: str
    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    layer: str | None = None

    def __repr__(self) -> str:
        classes = "unknown classes" if self.class_names is None else f"{len(self.class_names)} classes"
        return f"<Model {self.name}: {type(self.module).__name__}, {classes}>"

    def read(self, images: Any) -> Batch:
        """Turn pictures, or the module's own input tensors, into one batch on the module's device.

        Raises InputError for what is neither, and for pictures that come out of preprocessing at different sizes.
        """
        several = images if isinstance(images, list | tuple) else (images,)
        if self.preprocess is None or isinstance(images, dict) or any(isinstance(image, Tensor) for image in several):
            return as_batch(images, self._expected())
        return self._batch(images)

    def _batch(self, images: PictureLike | Sequence[PictureLike]) -> Batch:
        assert self.preprocess is not None
        tensors, pictures = zip(*(self.preprocess(picture) for picture in read_pictures(images)), strict=True)
        sizes = {tuple(tensor.shape) for tensor in tensors}
        if len(sizes) > 1:
            raise InputError(
                f"the pictures come out of preprocessing at different sizes ({', '.join(map(str, sorted(sizes)))}); "
                "explain them one by one, or give them one size: glowmap.load(..., size=(rows, columns))"
            )
        batch = torch.stack(tensors)
        parameter = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        if parameter is not None:
            batch = batch.to(parameter.device, parameter.dtype)
        return Batch((batch,), {}, batch, pictures)

    def _expected(self) -> str:
        return (
            f"without preprocessing a {type(self.module).__name__} takes its own input tensors "
            "(a tensor, a tuple of arguments or a dict of keywords); "
            "for pictures say how they become tensors: glowmap.load(module, size=..., mean=..., std=...)"
        )

    def changed(self, **fields: Any) -> "Model":
        """Copy with other fields."""
        return replace(self, **fields)


@dataclass(frozen=True)
class Family:
    """A library's models: the names it can build, and how (name, weights, seed) becomes a :class:`Model`."""

    library: str
    names: Callable[[], Sequence[str]]
    build: Callable[[str, str | Path, int], Model]


FAMILIES: Shelf[Family] = Shelf("model family", ModelError)
