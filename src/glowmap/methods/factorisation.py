"""Deep feature factorisation: a layer's maps as a few concepts, each a place and a direction among the channels.

Collins, Achanta and Suesstrunk, ECCV 2018, arXiv:1806.10206: the non-negative matrix A (cells x channels) is W H, W the
concepts' maps and H their channels, as near as a few concepts can come to it (in the Frobenius norm).
"""

import torch
from torch import Tensor

from glowmap.shapes import Maps

NAME = "deep_feature_factorisation"

_STEPS, _STILL = 400, 1e-6  # of the factors' updates at most, and the relative gain below which they have come to rest
_TINY = 1e-12


def factorised(activations: Maps, count: int, *, together: bool = False) -> tuple[Tensor, Tensor]:
    """Factorise each image's maps, or those of a batch ``together``, so that a concept is the same in all its images.

    Negative activations count as none. Returns the concepts' maps, batch x concept x space, and their vectors, batch x concept x
    channel; the strongest cell of each concept is 1, and its vector what the layer would be there. The first explains most.
    """
    space = activations.shape[2:]
    cells = activations.relu().flatten(2).transpose(1, 2).double()  # batch x cell x channel
    if together:
        weights, vectors = _nmf(cells.flatten(0, 1)[None], count)
        weights, vectors = weights.reshape(len(cells), -1, count), vectors.expand(len(cells), -1, -1)
        strongest = weights.amax((0, 1), keepdim=True)
    else:
        weights, vectors = _nmf(cells, count)
        strongest = weights.amax(1, keepdim=True)
    scale = strongest.clamp_min(_TINY)
    maps, vectors = (weights / scale).transpose(1, 2), vectors * scale.transpose(1, 2)
    energy = maps.pow(2).sum(2) * vectors.pow(2).sum(2)
    shared = energy.sum(0, keepdim=True).expand_as(energy) if together else energy
    order = shared.argsort(dim=1, descending=True, stable=True)
    maps, vectors = (torch.take_along_dim(values, order[..., None], 1) for values in (maps, vectors))
    return maps.reshape(*maps.shape[:2], *space).to(activations.dtype), vectors.to(activations.dtype)


def _nmf(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Factorise batch x cell x channel by multiplicative updates (Lee and Seung 2001), from the singular vectors."""
    weights, vectors = _start(values, count)
    last = torch.full(values.shape[:1], torch.inf, dtype=values.dtype, device=values.device)
    for _ in range(_STEPS):
        transposed = weights.transpose(1, 2)
        vectors = vectors * (transposed @ values) / (transposed @ weights @ vectors).clamp_min(_TINY)
        transposed = vectors.transpose(1, 2)
        weights = weights * (values @ transposed) / (weights @ (vectors @ transposed)).clamp_min(_TINY)
        error = (values - weights @ vectors).flatten(1).norm(dim=1)
        if bool((last - error <= _STILL * error).all()):
            break
        last = error
    return weights, vectors


def _start(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Begin at the positive parts of the singular vectors (Boutsidis and Gallopoulos 2008), the same on every run."""
    left, sizes, right = torch.linalg.svd(values, full_matrices=False)
    left, right = left[..., :count], right[:, :count]
    roots = sizes[:, :count].sqrt()
    plus = left.relu().norm(dim=1) * right.relu().norm(dim=2)
    minus = (-left).relu().norm(dim=1) * (-right).relu().norm(dim=2)
    sign = torch.where(plus >= minus, 1.0, -1.0).to(values.dtype)
    # what is zero stays zero under multiplicative updates, so nothing begins there
    floor = values.mean((1, 2), keepdim=True) / 100 + _TINY
    weights = (left * sign[:, None] * roots[:, None]).relu() + floor
    vectors = (right * sign[..., None] * roots[..., None]).relu() + floor
    missing = count - weights.shape[2]
    if missing > 0:  # fewer channels or cells than concepts
        weights = torch.cat([weights, floor.expand(-1, weights.shape[1], missing)], 2)
        vectors = torch.cat([vectors, floor.expand(-1, missing, vectors.shape[2])], 1)
    return weights, vectors
