"""Targets about features: the embedding of a picture, a unit of the embedding or of a layer, and directions in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glowmap import tree
from glowmap.cautions import Caution, caution_kind
from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.outputs import ModelOutput
from glowmap.shapes import Scores, crossed
from glowmap.targets._target import Target, in_images

Vector: TypeAlias = Tensor | NDArray[Any] | Sequence[Any]
_ROUNDING = 1e-5  # a cosine so near to 1 differs from it by rounding alone
_IDENTICAL = caution_kind("embedding-identical", "caution", "Use a method without gradients, or give another picture.")


@dataclass(frozen=True)
class LayerOutput:
    """The output of one run of a layer: the tensor itself, and the same as image x channel (x grid)."""

    output: Tensor
    maps: Tensor


class _FeatureTarget(Target):
    """A target about features: they are no classes, and their layer must lead to all of them."""

    is_class = False

    def moves_with_image(self, output: ModelOutput) -> bool:
        return not self.is_local(output)


@dataclass(frozen=True, eq=False)
class Similar(Target):
    """The cosine similarity of the picture's embedding to that of another picture.

    ``picture`` is anything that the model reads as one picture; for a bare module its input tensor, a batch of one. The other
    picture is embedded once and stays the same; the score is that of a :class:`Prototype`. Raises TargetError for several
    pictures.
    """

    picture: Any
    name: str = "the given picture"

    def prepare(self, embed: Callable[[Any], Tensor]) -> "Prototype":
        embedding = embed(self.picture)
        if len(embedding) != 1:
            raise TargetError(
                f"Similar takes one picture, and {len(embedding)} came",
                remedy=Remedy(
                    "give a list of targets, targets.PerImage([...]) for one per image, or the mean of their embeddings: "
                    "targets.Prototype(embeddings)"
                ),
            )
        return Prototype(embedding[0], self.name)

    def score(self, output: ModelOutput) -> NoReturn:
        raise TargetError(
            "the other picture is not embedded yet", remedy=Remedy("call glowmap.explain(model, images, target=...)")
        )

    def describe(self, output: ModelOutput, image: int) -> str:
        return f"similar to {self.name}"


@dataclass(frozen=True, eq=False)
class Prototype(_FeatureTarget):
    """The cosine similarity of the picture's embedding to a given vector, between -1 and 1.

    ``vector`` has one number per feature; of several vectors (n x feature) the mean is taken. The embedding is normalised inside
    the graph, so that its length is no evidence. Raises TargetError for a vector of another length, and for zeros and NaN.
    """

    vector: Vector
    name: str = "prototype"
    # of the pinned target: a changed picture may have the embedding zero, and then the score 0
    allows_zero: bool = field(default=False, kw_only=True, repr=False)

    def score(self, output: ModelOutput) -> Scores:
        return self._cosine(output)

    def describe(self, output: ModelOutput, image: int) -> str:
        return f"similar to {self.name}"

    def pin(self, output: ModelOutput, image: int) -> "Prototype":
        return replace(self, allows_zero=True)

    def is_local(self, output: ModelOutput) -> bool:
        return False

    def layer_score(self, output: ModelOutput) -> Tensor:
        return _signed_sum(output.embedding)

    def layer_key(self, read_output: Callable[[], ModelOutput]) -> tuple[str | None, int]:
        return None, 0  # the layer of the embedding

    def cautions(self, output: ModelOutput) -> list[Caution]:
        cautions = [*output.embedding_cautions]
        same = [image for image, cosine in enumerate(self._cosine(output).tolist()) if cosine > 1 - _ROUNDING]
        if same:
            sentence = (
                f"the embedding{in_images(same, output.embedding)} equals that of {self.name}: their cosine is at its maximum, "
                "where its gradient is rounding noise; use a method without gradients (rise, occlusion, ablation_cam), or give "
                "another picture"
            )
            cautions.append(_IDENTICAL(sentence))
        return cautions

    def _cosine(self, output: ModelOutput) -> Tensor:
        embedding = tree.full_precision(output.embedding)
        vector = _read_vector(self.vector, self.name, mean=True).to(embedding)
        _check_length(len(vector), embedding.shape[1], self.name, f"the embedding of {output.model}")
        lengths = torch.linalg.vector_norm(embedding, dim=1)
        zero = [image for image, length in enumerate(lengths.tolist()) if length == 0]
        if zero and not self.allows_zero:
            raise TargetError(
                f"the embedding{in_images(zero, embedding)} is zero and has no cosine; look for dead units in the model"
            )
        cosine = torch.mv(embedding, _normalised(vector)) / torch.where(lengths == 0, 1.0, lengths)
        return torch.where(lengths == 0, 0.0, cosine) if zero else cosine


@dataclass(frozen=True, eq=False)
class Direction(_FeatureTarget):
    """The component of the picture's embedding e along a concept's direction v: <e, v> / |v|.

    Kim et al., ICML 2018, arXiv:1711.11279 (TCAV), where v is the normal of a linear classifier that separates pictures of the
    concept from others, and points towards the concept. With a ``layer``, e is that layer's output: averaged over its grid if v
    has one number per channel, flattened if v has as many numbers as the output. Raises TargetError for a vector of another
    length, and for zeros and NaN.
    """

    vector: Vector
    layer: str | None = None
    name: str = "direction"

    def score(self, output: ModelOutput) -> Scores:
        vector = _read_vector(self.vector, self.name)
        features = self._features(output, len(vector))
        return torch.mv(features, _normalised(vector.to(features)))

    def describe(self, output: ModelOutput, image: int) -> str:
        return self.name if self.layer is None else f"{self.name} at {self.layer}"

    def needs_layers(self) -> tuple[str, ...]:
        return _layer_names(self.layer)

    def is_local(self, output: ModelOutput) -> bool:
        if self.layer is None:
            return False
        maps = _layer_output(output, self.layer).maps
        return maps.ndim > 2 and self._length() != maps.shape[1]

    def layer_score(self, output: ModelOutput) -> Tensor:
        return _signed_sum(self._features(output, self._length()))

    def layer_key(self, read_output: Callable[[], ModelOutput]) -> tuple[str | None, int]:
        return self.layer, 0 if self.layer is None else self._length()

    def cautions(self, output: ModelOutput) -> list[Caution]:
        return [*output.embedding_cautions] if self.layer is None else []

    def _length(self) -> int:
        return len(_read_vector(self.vector, self.name))

    def _features(self, output: ModelOutput, length: int) -> Tensor:
        if self.layer is None:
            _check_length(length, output.embedding.shape[1], self.name, f"the embedding of {output.model}")
            return tree.full_precision(output.embedding)
        layer_output = _layer_output(output, self.layer)
        pooled, flat = _pool(layer_output.maps), layer_output.output.flatten(1)
        if length == pooled.shape[1]:
            return pooled
        if layer_output.maps.ndim > 2 and length == flat.shape[1] and len(flat) == output.batch:
            return tree.full_precision(flat)
        raise TargetError(
            f"{self.name} has {length} numbers, but layer {self.layer!r} has {pooled.shape[1]} channels and {flat.shape[1]} "
            f"numbers in all ({crossed(layer_output.output.shape[1:])}); give a vector of either length"
        )


@dataclass(frozen=True)
class Unit(_FeatureTarget):
    """One unit of the model: a feature of its embedding, or, with a ``layer``, the mean of one of its channels over the grid.

    With ``place="max"`` the channel at the cell where it is highest, image by image; with a tuple of numbers from 0 (row, column)
    the channel at this cell. Raises TargetError for a unit or a cell that does not exist.
    """

    index: int
    layer: str | None = None
    place: Literal["max"] | tuple[int, ...] | None = None

    def score(self, output: ModelOutput) -> Scores:
        if self.place is None:
            return self._features(output)[:, self._checked_index(output)]
        channel = tree.full_precision(self._maps(output)[:, self._checked_index(output)])
        if self.place == "max":
            return channel.flatten(1).amax(1)
        for position in self._cell(output):
            channel = channel[:, position]
        return channel

    def describe(self, output: ModelOutput, image: int) -> str:
        if self.layer is None:
            return f"unit {self.index} of the embedding"
        where = "" if self.place is None else " at its highest" if self.place == "max" else f" at {self.place}"
        return f"unit {self.index} of {self.layer}{where}"

    def pin(self, output: ModelOutput, image: int) -> "Unit":
        if self.place != "max":
            return self
        channel = self._maps(output)[image, self._checked_index(output)].detach()
        cell = np.unravel_index(int(channel.argmax()), tuple(channel.shape))
        return replace(self, place=tuple(int(position) for position in cell))

    def needs_layers(self) -> tuple[str, ...]:
        return _layer_names(self.layer)

    def is_local(self, output: ModelOutput) -> bool:
        return self.place is not None

    def layer_score(self, output: ModelOutput) -> Tensor:
        return _signed_sum(self._features(output))

    def layer_key(self, read_output: Callable[[], ModelOutput]) -> tuple[str | None, int]:
        return self.layer, 0

    def cautions(self, output: ModelOutput) -> list[Caution]:
        return [*output.embedding_cautions] if self.layer is None else []

    def _features(self, output: ModelOutput) -> Tensor:
        if self.layer is None:
            return tree.full_precision(output.embedding)
        return _pool(_layer_output(output, self.layer).maps)

    def _checked_index(self, output: ModelOutput) -> int:
        count, where = self._features(output).shape[1], self.layer or f"the embedding of {output.model}"
        if not is_whole_number(self.index):
            raise TargetError(f"a unit is given by its number, not {self.index!r}; give one from 0 to {count - 1}")
        if not 0 <= self.index < count:
            raise TargetError(f"no unit {self.index} in {where}; give one from 0 to {count - 1}")
        return int(self.index)

    def _maps(self, output: ModelOutput) -> Tensor:
        maps = None if self.layer is None else _layer_output(output, self.layer).maps
        if maps is None or maps.ndim < 3:
            source = "the embedding" if self.layer is None else f"the output of layer {self.layer!r}"
            raise TargetError(
                f"{source} has no grid, so place={self.place!r} has no meaning",
                remedy=Remedy("leave place out, or name a layer with a grid: targets.Unit(index, layer, place)"),
            )
        return maps

    def _cell(self, output: ModelOutput) -> tuple[int, ...]:
        grid, place = tuple(self._maps(output).shape[2:]), self.place
        is_cell = isinstance(place, tuple | list) and all(isinstance(position, int) for position in place)
        if not is_cell or len(place or ()) != len(grid):
            raise TargetError(f'place is "max" or {len(grid)} numbers from 0 in {crossed(grid)} cells, not {place!r}')
        cell = tuple(int(position) for position in place or ())
        if any(not 0 <= position < side for position, side in zip(cell, grid, strict=True)):
            raise TargetError(f"no cell {place} in layer {self.layer!r}, which has {crossed(grid)}; count from 0")
        return cell


def _layer_names(layer: Any) -> tuple[str, ...]:
    if layer is not None and not isinstance(layer, str):
        raise TargetError(
            f"the layer of a target is its dotted name, not {type(layer).__name__}; see model.named_modules()"
        )
    return () if layer is None else (layer,)


def _layer_output(output: ModelOutput, layer: str) -> LayerOutput:
    """Return the output of the run of a layer that its name means ("body#2" is the second), or else of the last run."""
    name, _, run = layer.partition("#")
    runs = output.intermediates.get(layer, ())
    if not runs:
        raise TargetError(
            f"layer {name!r}, whose output the target reads, did not run; if another layer is explained, name one before it"
        )
    if run and int(run) > len(runs):
        raise TargetError(f"layer {name!r} ran {len(runs)} times, so there is no {layer!r}; name {name}#{len(runs)}")
    layer_output: LayerOutput = runs[int(run) - 1 if run else -1]
    return layer_output


def _pool(maps: Tensor) -> Tensor:
    """Average each channel over the grid: image x channel (x grid) become image x channel."""
    maps = tree.full_precision(maps)
    return maps.flatten(2).mean(2) if maps.ndim > 2 else maps


def _read_vector(values: Vector, name: str, *, mean: bool = False) -> Tensor:
    """Return a vector as a tensor; with ``mean``, the mean of several vectors. Raises TargetError for what is no vector."""
    try:
        vector = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"{name} is a vector with one number per feature, not {type(values).__name__}") from None
    if vector.is_complex() or vector.dtype == torch.bool:
        raise TargetError(f"{name} is a vector of real numbers, not of {vector.dtype}")
    vector = tree.full_precision(vector)
    if mean and vector.ndim == 2 and len(vector):
        vector = vector.mean(0)
    if vector.ndim != 1 or not len(vector):
        also = " (or several vectors, n x feature)" if mean else ""
        raise TargetError(
            f"{name} has one number per feature{also}, not the shape {tuple(np.shape(values))}; flatten it"
        )
    if not bool(vector.isfinite().all()):
        raise TargetError(f"{name} holds NaN or infinity; give a finite vector")
    if not bool(vector.any()):
        raise TargetError(f"{name} is zero and has no direction; give a vector that is not zero")
    return vector


def _normalised(vector: Tensor) -> Tensor:
    return vector.div(torch.linalg.vector_norm(vector))


def _check_length(length: int, features: int, name: str, source: str) -> None:
    if length != features:
        raise TargetError(f"{name} has {length} numbers, but {source} has {features}; give a vector of that length")


def _signed_sum(features: Tensor) -> Tensor:
    """Sum features with random signs, so that none cancels another: the score (one axis) that their layer is searched with."""
    features = tree.full_precision(features)
    return (features * tree.random_signs(features[0])).sum()[None]
