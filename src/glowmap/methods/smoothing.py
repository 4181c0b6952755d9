"""Around any method: maps averaged over changed images, layers fused into one map.

Averaging asks the same question of changed copies of the image and lays the answers over each other again. A set of pixels stays
the one that was asked about: what a dense model says of a flipped image is flipped back before it is scored.
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

Change: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """A change of the images, and how what lies on them (maps, logits: batch x any x space) is laid back."""

    change: Change
    undo: Change


SMOOTHING: Registry[Callable[[Images, int], list[Variant]]] = Registry("smoothing", MethodError)


def flips(_images: Images, _seed: int) -> list[Variant]:
    """Average over the image and its mirror image."""

    def mirrored(values: Tensor) -> Tensor:
        return values.flip(-1)

    return [_UNCHANGED, Variant(mirrored, mirrored)]


def scales(images: Images, _seed: int) -> list[Variant]:
    """Average over the image, and the image a tenth smaller and larger."""
    return [_scaled(tuple(images.shape[2:]), factor) for factor in (0.9, 1.0, 1.1)]


def noise(images: Images, seed: int) -> list[Variant]:
    """Average over eight noisy images; the noise's deviation is a tenth of each image's range."""
    flat = images.flatten(1)
    span = (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (images.ndim - 1))
    generator = torch.Generator().manual_seed(seed)
    # the same noise for every image of a batch, so that a batch gives what its images give one by one
    draws = [torch.randn(images.shape[1:], generator=generator) for _ in range(8)]
    return [Variant(_adding(draw.to(images.device, images.dtype) * span * 0.1), _same) for draw in draws]


def principal(_images: Images, _seed: int) -> list[Variant]:
    """Take the first principal component of what the method adds up over the channels, in the place of the sum."""
    return [_UNCHANGED]


def variants(names: Sequence[str], images: Images, seed: int) -> list[Variant]:
    """Combine kinds of smoothing: every change of the one after every change of the other."""
    kinds = [SMOOTHING[name](images, seed) for name in names]
    return [_chained(combination) for combination in itertools.product(*kinds)]


def fused(maps: Sequence[Heatmaps], how: str) -> RawMaps:
    """Fuse heatmaps of several layers, each in [0, 1] at one resolution, by ``mean``, ``max`` or ``product``.

    The product is RefineCAM (2026, arXiv:2605.14641): what every layer agrees on, as sharp as the finest. One layer that is
    blank makes it blank. MethodError for another way.
    """
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda stack: stack.mean(0),
        "max": lambda stack: stack.amax(0),
        "product": lambda stack: stack.prod(0),
    }
    if how not in ways:
        raise MethodError(f"layers are fused by {', '.join(ways)}, not by {how!r}")
    return ways[how](torch.stack(list(maps)))


def _same(values: Tensor) -> Tensor:
    return values


_UNCHANGED = Variant(_same, _same)


def _adding(noise: Tensor) -> Change:
    return lambda images: images + noise


def _scaled(size: tuple[int, ...], factor: float) -> Variant:
    changed = tuple(max(1, round(side * factor)) for side in size)

    def change(images: Tensor) -> Tensor:
        return _resized(images, changed)

    # what lies on a smaller image covers the whole of it: it is laid over the others when it is resized to their grid
    return Variant(change, _same)


def _resized(values: Tensor, size: tuple[int, ...]) -> Tensor:
    wide = values if values.dtype == torch.float64 else values.float()
    return resize(wide, size).to(values.dtype)


def resized_like(values: Tensor, like: Tensor) -> Tensor:
    """Resize maps or logits (batch x any x space) to the space of others, where they differ."""
    size = tuple(like.shape[2:])
    return values if tuple(values.shape[2:]) == size else _resized(values, size)


def _chained(combination: Sequence[Variant]) -> Variant:
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
