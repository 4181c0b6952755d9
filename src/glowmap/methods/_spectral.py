"""The first principal component of activations, with a defined sign.

A solver may return a component or its negative, which after the heatmap's ReLU are opposite pictures. So each function says
which way its component faces: where the mean over channels is high, or where the component has its peak.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from glowmap.shapes import Maps, RawMaps

Facing: TypeAlias = Literal["mean", "peak"]
# As a share of the maps' norm: below it the mean over channels is rounding, as after a layer norm, where it is zero.
_ROUNDING = 1e-6
_SMALL = 96  # a matrix up to this size is decomposed completely
_ROUNDS, _BETWEEN_CHECKS = 8, 8
_TOLERANCE = 1e-13  # residual as a share of the eigenvalue, as good as a complete decomposition


def centred(maps: Maps) -> Tensor:
    """Flatten maps to batch x channel x cells and subtract from each channel its mean; a flat channel becomes exactly zero."""
    cells = maps.flatten(2)
    # relative to the first cell, as the mean of a flat channel may round to another number than its value
    cells = cells - cells[:, :, :1]
    return cells - cells.mean(2, keepdim=True)


def principal_component(maps: Maps, *, facing: Facing) -> RawMaps:
    """Project each image's cells, as points in channel space around their mean, on their first principal direction."""
    cells = centred(_exact(maps))
    if cells.shape[1] < cells.shape[2]:
        _, direction = _leading(cells @ cells.mT)
        component = (direction[:, None] @ cells)[:, 0]
    else:
        spread, along = _leading(cells.mT @ cells)
        component = spread.clamp(min=0).sqrt()[:, None] * along
    return _oriented(component, cells, facing).reshape(len(maps), *maps.shape[2:]).to(maps)


def kernel_component(maps: Maps, kernel: Callable[[Tensor], Tensor]) -> RawMaps:
    """Compute each image's first kernel principal component. It faces the mean over channels.

    ``kernel`` gets points, cells x channels, and returns the kernel matrix, cells x cells.
    """
    cells = centred(_exact(maps))
    # image by image: the kernel matrix is much larger than the maps
    components = torch.cat([_kernel_component(kernel(image.mT)) for image in cells])
    return _oriented(components, cells, "mean").reshape(len(maps), *maps.shape[2:]).to(maps)


def _kernel_component(kernel: Tensor) -> Tensor:
    means = kernel.mean(0, keepdim=True)
    spread, along = _leading((kernel - means - means.mT + means.mean())[None])
    # where all cells are equal, the rounding of these four terms is left, and its root would look like a map
    rounding = 4 * len(kernel) * torch.finfo(kernel.dtype).eps * kernel.abs().amax()
    return torch.where(spread > rounding, spread, 0.0).sqrt()[:, None] * along


def _exact(maps: Maps) -> Maps:
    """Convert to double precision, as products lose half of the digits; on the CPU where the GPU (Apple's) has no doubles."""
    return maps.cpu().double() if maps.device.type == "mps" else maps.double()


def _leading(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the largest eigenvalue of each matrix of a batch and its eigenvector; NaN for a matrix that is not finite."""
    not_finite = ~symmetric.isfinite().all(2).all(1)[:, None]
    pairs = [_largest_pair(matrix) for matrix in symmetric.masked_fill(not_finite[:, None], 0.0)]
    values, vectors = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return values, vectors.masked_fill(not_finite, torch.nan)


def _largest_pair(matrix: Tensor) -> tuple[Tensor, Tensor]:
    pair = _lanczos(matrix) if len(matrix) > _SMALL else None
    if pair is not None:
        return pair
    values, vectors = torch.linalg.eigh(matrix)
    return values[-1], vectors[:, -1]


def _lanczos(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Compute the largest eigenpair in a Krylov space (Lanczos 1950, with full reorthogonalisation).

    One pair costs a few dozen products with the matrix, where all pairs cost its cube. None where it does not converge,
    because the two largest eigenvalues are too close.
    """
    start = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0), dtype=matrix.dtype).to(matrix.device)
    basis = (start / start.norm())[:, None]
    for _ in range(_ROUNDS):
        for _ in range(_BETWEEN_CHECKS):
            vector = matrix @ basis[:, -1]
            for _ in range(2):  # once leaves rounding errors
                vector = vector - basis @ (basis.mT @ vector)
            if not vector.norm() > 0:
                return None  # the space is exhausted, as for a matrix of zeros
            basis = torch.cat([basis, (vector / vector.norm())[:, None]], 1)
        value, vector = (parts[..., -1] for parts in torch.linalg.eigh(basis.mT @ matrix @ basis))
        vector = basis @ vector
        if (matrix @ vector - value * vector).norm() <= _TOLERANCE * value.abs():
            return value, vector / vector.norm()
    return None


def _oriented(component: Tensor, cells: Tensor, facing: Facing) -> Tensor:
    peak = torch.where(component.amax(1) >= -component.amin(1), 1.0, -1.0)
    sign = peak
    if facing == "mean":
        agreement = (component * cells.mean(1)).sum(1)
        scale = component.norm(dim=1) * cells.flatten(1).norm(dim=1) / cells.shape[1] ** 0.5
        sign = torch.where(agreement.abs() > _ROUNDING * scale, agreement.sign(), peak)
    return component * sign.to(component)[:, None]
