"""For any method: maps averaged over changed images, and maps of several layers fused into one.

The same target is explained in changed copies of the image, and the changes are undone in the maps before these are averaged.
The logits of a dense model for a flipped image are flipped back before they are scored, so that a mask means the same pixels.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._masks import resize
from glowmap.registry import Registry
from glowmap.shapes import Heatmaps, Images, RawMaps
from glowmap.tree import full_precision

Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """A change of the images, and the inverse change of what lies on them: maps or logits, batch x any x grid."""

    change: Change
    undo: Change


MOVING = frozenset({"flips", "scales"})  # after which a place of the image is elsewhere
SMOOTHING: Registry[Callable[[Images, int], list[Variant]]] = Registry("smoothing", MethodError)


def flips(_images: Images, _seed: int) -> list[Variant]:
    """Average over the image and its mirror image."""

    def mirrored(values: Tensor) -> Tensor:
        return values.flip(-1)

    return [_UNCHANGED, Variant(mirrored, mirrored)]


def scales(images: Images, _seed: int) -> list[Variant]:
    """Average over the image, and the image a tenth smaller and larger."""
    return [_scale(tuple(images.shape[2:]), factor) for factor in (0.9, 1.0, 1.1)]


def noise(images: Images, seed: int) -> list[Variant]:
    """Average over eight noisy images; the standard deviation of the noise is a tenth of each image's range."""
    flat = images.flatten(1)
    span = (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (images.ndim - 1))
    generator = torch.Generator().manual_seed(seed)
    # the same noise for every image of a batch, so that a batch gives the same maps as its images one by one
    draws = [torch.randn(images.shape[1:], generator=generator) for _ in range(8)]
    return [Variant(_add(draw.to(images.device, images.dtype) * span * 0.1), _unchanged) for draw in draws]


def principal(_images: Images, _seed: int) -> list[Variant]:
    """Take the first principal component of the method's terms instead of their sum over the channels."""
    return [_UNCHANGED]


def variants(names: Sequence[str], images: Images, seed: int) -> list[Variant]:
    """Combine kinds of smoothing: every variant of each after every variant of those before."""
    kinds = [SMOOTHING[name](images, seed) for name in names]
    return [_chain(combination) for combination in itertools.product(*kinds)]


def fused(maps: Sequence[Heatmaps], how: str) -> RawMaps:
    """Fuse heatmaps of several layers, each in [0, 1] at one resolution, by ``mean``, ``max`` or ``product``.

    The product is RefineCAM (2026, arXiv:2605.14641): the heat that all layers share, as sharp as the finest. It is blank if
    one layer is blank. Raises MethodError for another word.
    """
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda stack: stack.mean(0),
        "max": lambda stack: stack.amax(0),
        "product": lambda stack: stack.prod(0),
    }
    if how not in ways:
        raise MethodError(f"layers are fused by {', '.join(ways)}, not by {how!r}")
    return ways[how](torch.stack(list(maps)))


def _unchanged(values: Tensor) -> Tensor:
    return values


_UNCHANGED = Variant(_unchanged, _unchanged)


def _add(noise: Tensor) -> Change:
    return lambda images: images + noise


def _scale(size: tuple[int, ...], factor: float) -> Variant:
    scaled = tuple(max(1, round(side * factor)) for side in size)

    def change(images: Tensor) -> Tensor:
        return resize(full_precision(images), scaled).to(images.dtype)

    # a map covers its whole image, whatever its size: it is undone when it is resized to the grid of the others
    return Variant(change, _unchanged)


def resize_like(values: Tensor, like: Tensor) -> Tensor:
    """Resize maps or logits, batch x any x grid, to the grid of others. Returns them unchanged if it is the same."""
    size = tuple(like.shape[2:])
    if tuple(values.shape[2:]) == size:
        return values
    return resize(full_precision(values), size).to(values.dtype)


def _chain(combination: Sequence[Variant]) -> Variant:
    def change(images: Tensor) -> Tensor:
        for variant in combination:
            images = variant.change(images)
        return images

    def undo(values: Tensor) -> Tensor:
        for variant in reversed(combination):
            values = variant.undo(values)
        return values

    return Variant(change, undo)


for _member in (flips, scales, noise, principal):
    SMOOTHING.register(_member.__name__, _member)
