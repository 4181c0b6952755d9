"""Questions about what a model makes of a picture before any class: its embedding, its units, and directions in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glowmap import tree
from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.outputs import ModelOutput
from glowmap.shapes import Scores, crossed
from glowmap.targets._target import in_images

Vector: TypeAlias = Tensor | NDArray[Any] | Sequence[Any]
_THE_SAME = 1e-5  # how near to 1 a cosine is at its top but for rounding


@dataclass(frozen=True)
class LayerOutput:
    """What a layer put out in one run: the tensor itself, and as images x channel, followed by its places where it has some."""

    output: Tensor
    maps: Tensor


@dataclass(frozen=True, eq=False)
class Similar:
    """How similar the model finds the picture to another one: the cosine of their embeddings.

    ``picture`` is anything that the model reads as one picture; for a bare module its input tensor, a batch of one. The other
    picture is embedded once and stays as it is; the score is as a :class:`Prototype`'s. Raises TargetError for several pictures.
    """

    picture: Any
    name: str = "the given picture"

    def prepared(self, embed: Callable[[Any], Tensor]) -> "Prototype":
        other = embed(self.picture)
        if len(other) != 1:
            raise TargetError(
                f"Similar takes one picture, and {len(other)} came",
                remedy=Remedy(
                    "give a list of questions, targets.Each([...]) for one each, "
                    "or the mean of their embeddings: targets.Prototype(embeddings)"
                ),
            )
        return Prototype(other[0], self.name)

    def score(self, answer: ModelOutput) -> NoReturn:
        raise TargetError(
            "the other picture has not been embedded",
            remedy=Remedy("ask through glowmap.explain(model, images, target=...)"),
        )

    def describe(self, answer: ModelOutput, image: int) -> str:
        return f"similar to {self.name}"


@dataclass(frozen=True, eq=False)
class Prototype:
    """How similar the picture's embedding is to a given one: their cosine, between -1 and 1.

    ``vector`` has one number a feature; of several (n x feature) the mean is taken. The embedding is normalised inside the
    graph, so that what only makes it longer is no evidence. Raises TargetError for another length, for zeros and for NaN.
    """

    vector: Vector
    name: str = "prototype"
    again: bool = field(
        default=False, kw_only=True, repr=False
    )  # asked about changed pictures, which may excite nothing
    ranks: ClassVar[bool] = False

    def score(self, answer: ModelOutput) -> Scores:
        return self._cosine(answer)

    def pin(self, answer: ModelOutput, image: int) -> "Prototype":
        return replace(self, again=True)

    def describe(self, answer: ModelOutput, image: int) -> str:
        return f"similar to {self.name}"

    def said(self, answer: ModelOutput) -> Tensor:
        return _signed(answer.embedding)

    def of_places(self, answer: ModelOutput) -> bool:
        return False

    def found_as(self, _first: Any) -> tuple[str | None, int]:
        return None, 0  # as all that ask about the embedding

    def cautions(self, answer: ModelOutput) -> list[str]:
        same = [image for image, one in enumerate(self._cosine(answer).tolist()) if one > 1 - _THE_SAME]
        if not same:
            return [*answer.embedding_cautions]
        where = in_images(same, answer.embedding)
        return [
            *answer.embedding_cautions,
            f"the embedding{where} is {self.name}'s own: their cosine is at its highest, where its gradient is nothing but "
            "rounding; use a method that asks again (rise, occlusion, ablation_cam), or give another picture",
        ]

    def _cosine(self, answer: ModelOutput) -> Tensor:
        embedding = tree.full_precision(answer.embedding)
        vector = _vector(self.vector, self.name, mean=True).to(embedding)
        _check_length(len(vector), embedding.shape[1], self.name, f"the embedding of {answer.model}")
        lengths = torch.linalg.vector_norm(embedding, dim=1)
        zero = [image for image, length in enumerate(lengths.tolist()) if length == 0]
        if zero and not self.again:
            raise TargetError(
                f"the embedding{in_images(zero, embedding)} is zero and so similar to nothing; look for dead units in the model"
            )
        cosine = torch.mv(embedding, _unit_long(vector)) / torch.where(lengths == 0, 1.0, lengths)
        return torch.where(lengths == 0, 0.0, cosine) if zero else cosine


@dataclass(frozen=True, eq=False)
class Direction:
    """How far the picture lies along a concept's direction: the part of its embedding e along v, <e, v> / |v|.

    Kim et al., ICML 2018, arXiv:1711.11279 (TCAV), where v is the normal of a linear classifier that tells pictures of the
    concept from others, and points towards the concept. With a ``layer`` e is that layer's output: averaged over its places
    where v has one number a channel, or, where v has as many numbers as the output, flattened as the output lies. Raises
    TargetError for another length, for zeros and for NaN.
    """

    vector: Vector
    layer: str | None = None
    name: str = "direction"
    ranks: ClassVar[bool] = False

    def score(self, answer: ModelOutput) -> Scores:
        vector = _vector(self.vector, self.name)
        features = self._features(answer, len(vector))
        return torch.mv(features, _unit_long(vector.to(features)))

    def describe(self, answer: ModelOutput, image: int) -> str:
        return self.name if self.layer is None else f"{self.name} at {self.layer}"

    def watches(self) -> tuple[str, ...]:
        return _watching(self.layer)

    def said(self, answer: ModelOutput) -> Tensor:
        return _signed(self._features(answer, len(_vector(self.vector, self.name))))

    def of_places(self, answer: ModelOutput) -> bool:
        if self.layer is None:
            return False
        watched = _watched(answer, self.layer)
        return watched.maps.ndim > 2 and len(_vector(self.vector, self.name)) != watched.maps.shape[1]

    def found_as(self, _first: Any) -> tuple[str | None, int]:
        return self.layer, 0 if self.layer is None else len(_vector(self.vector, self.name))

    def cautions(self, answer: ModelOutput) -> list[str]:
        return [*answer.embedding_cautions] if self.layer is None else []

    def _features(self, answer: ModelOutput, length: int) -> Tensor:
        if self.layer is None:
            _check_length(length, answer.embedding.shape[1], self.name, f"the embedding of {answer.model}")
            return tree.full_precision(answer.embedding)
        watched = _watched(answer, self.layer)
        pooled, flat = _pooled(watched), watched.output.flatten(1)
        if length == pooled.shape[1]:
            return pooled
        if watched.maps.ndim > 2 and length == flat.shape[1] and len(flat) == answer.batch:
            return tree.full_precision(flat)
        raise TargetError(
            f"{self.name} has {length} numbers, but layer {self.layer!r} has {pooled.shape[1]} channels and {flat.shape[1]} "
            f"numbers in all ({crossed(watched.output.shape[1:])}); give a vector of either length"
        )


@dataclass(frozen=True)
class Unit:
    """One unit of the model: a feature of its embedding, or, with a ``layer``, the mean of one channel over its places.

    ``place="max"`` asks about the channel at the place where it is highest, image by image, and a tuple of numbers at that cell
    of the layer (row, column), from 0. Raises TargetError for a unit or a place that is not there.
    """

    index: int
    layer: str | None = None
    place: Literal["max"] | tuple[int, ...] | None = None
    ranks: ClassVar[bool] = False

    def score(self, answer: ModelOutput) -> Scores:
        if self.place is None:
            return self._units(answer)[:, self._unit(answer)]
        channel = tree.full_precision(self._places(answer)[:, self._unit(answer)])
        if self.place == "max":
            return channel.flatten(1).amax(1)
        for number in self._cell(answer):
            channel = channel[:, number]
        return channel

    def describe(self, answer: ModelOutput, image: int) -> str:
        if self.layer is None:
            return f"unit {self.index} of the embedding"
        where = "" if self.place is None else " at its highest" if self.place == "max" else f" at {self.place}"
        return f"unit {self.index} of {self.layer}{where}"

    def pin(self, answer: ModelOutput, image: int) -> "Unit":
        if self.place != "max":
            return self
        channel = self._places(answer)[image, self._unit(answer)].detach()
        cell = np.unravel_index(int(channel.argmax()), tuple(channel.shape))
        return replace(self, place=tuple(int(number) for number in cell))

    def watches(self) -> tuple[str, ...]:
        return _watching(self.layer)

    def said(self, answer: ModelOutput) -> Tensor:
        return _signed(self._units(answer))

    def of_places(self, answer: ModelOutput) -> bool:
        return self.place is not None

    def found_as(self, _first: Any) -> tuple[str | None, int]:
        return self.layer, 0

    def cautions(self, answer: ModelOutput) -> list[str]:
        return [*answer.embedding_cautions] if self.layer is None else []

    def _units(self, answer: ModelOutput) -> Tensor:
        return tree.full_precision(answer.embedding) if self.layer is None else _pooled(_watched(answer, self.layer))

    def _unit(self, answer: ModelOutput) -> int:
        count, where = self._units(answer).shape[1], self.layer or f"the embedding of {answer.model}"
        if not is_whole_number(self.index):
            raise TargetError(f"a unit is told by its number, not by {self.index!r}; give one from 0 to {count - 1}")
        if not 0 <= self.index < count:
            raise TargetError(f"no unit {self.index} in {where}; give one from 0 to {count - 1}")
        return int(self.index)

    def _places(self, answer: ModelOutput) -> Tensor:
        maps = None if self.layer is None else _watched(answer, self.layer).maps
        if maps is None or maps.ndim < 3:
            where = "the embedding" if self.layer is None else f"the output of layer {self.layer!r}"
            raise TargetError(
                f"{where} has no places, so {self.place!r} means nothing there",
                remedy=Remedy("leave place out, or name a layer with places: targets.Unit(index, layer, place)"),
            )
        return maps

    def _cell(self, answer: ModelOutput) -> tuple[int, ...]:
        grid, place = tuple(self._places(answer).shape[2:]), self.place
        if (
            not isinstance(place, tuple | list)
            or len(place) != len(grid)
            or not all(isinstance(one, int) for one in place)
        ):
            raise TargetError(f'a place is "max" or {len(grid)} numbers from 0 in {crossed(grid)} cells, not {place!r}')
        if any(not 0 <= one < side for one, side in zip(place, grid, strict=True)):
            raise TargetError(f"no cell {place} in layer {self.layer!r}, which has {crossed(grid)}; count from 0")
        return tuple(place)


def _watching(layer: Any) -> tuple[str, ...]:
    if layer is not None and not isinstance(layer, str):
        raise TargetError(
            f"the layer of a question is its dotted name, not {type(layer).__name__}; see model.named_modules()"
        )
    return () if layer is None else (layer,)


def _watched(answer: ModelOutput, layer: str) -> LayerOutput:
    """Find the run of a layer that is meant: the one that its name says ("body#2"), or the last."""
    plain, _, number = layer.partition("#")
    runs = answer.intermediates.get(layer, ())
    if not runs:
        raise TargetError(
            f"layer {plain!r}, whose output is asked about, did not run; if another layer is explained, name one before it"
        )
    if number and int(number) > len(runs):
        raise TargetError(f"layer {plain!r} ran {len(runs)} times, so there is no {layer!r}; name {plain}#{len(runs)}")
    watched: LayerOutput = runs[int(number) - 1 if number else -1]
    return watched


def _pooled(watched: LayerOutput) -> Tensor:
    maps = tree.full_precision(watched.maps)
    return maps.flatten(2).mean(2) if maps.ndim > 2 else maps


def _vector(given: Vector, name: str, *, mean: bool = False) -> Tensor:
    """Read a vector; with ``mean``, the mean of several."""
    try:
        vector = given.detach() if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"{name} is a vector of numbers, one a feature, not {type(given).__name__}") from None
    if vector.is_complex() or vector.dtype == torch.bool:
        raise TargetError(f"{name} is a vector of real numbers, not of {vector.dtype}")
    vector = tree.full_precision(vector)
    if mean and vector.ndim == 2 and len(vector):
        vector = vector.mean(0)
    if vector.ndim != 1 or not len(vector):
        several = " (or several such, n x feature)" if mean else ""
        raise TargetError(f"{name} is one number a feature{several}, not of shape {tuple(np.shape(given))}; flatten it")
    if not bool(vector.isfinite().all()):
        raise TargetError(f"{name} holds NaN or infinity; give a finite vector")
    if not bool(vector.any()):
        raise TargetError(f"{name} is zero and so points nowhere; give a vector with a length")
    return vector


def _unit_long(vector: Tensor) -> Tensor:
    return vector.div(torch.linalg.vector_norm(vector))


def _check_length(length: int, features: int, name: str, whose: str) -> None:
    if length != features:
        raise TargetError(f"{name} has {length} numbers, but {whose} has {features}; give a vector of that length")


def _signed(features: Tensor) -> Tensor:
    """Add features up with a sign of its own for each, so that none cancels another: by this a layer is found."""
    signs = torch.randint(0, 2, features.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (tree.full_precision(features) * signs.to(features.device)).sum()
