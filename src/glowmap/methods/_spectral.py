"""The first principal component of a layer's maps, as fast as its smaller side allows and with a sign that is no chance.

A solver may return a component or its negative; after the heatmap's ReLU these are opposite pictures. So every member says
which way its component faces: where the maps' mean over channels is high, or where the component's own peak is.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from glowmap.shapes import Maps, RawMaps

Facing: TypeAlias = Literal["mean", "peak"]
# Of the maps' own size: what their mean over channels says below this is rounding, as after a layer norm, where it is zero.
_SAYS_NOTHING = 1e-6
_SMALL = 96  # a matrix up to this size is decomposed whole
_ROUNDS, _BETWEEN_CHECKS = 8, 8
_SETTLED = 1e-13  # of the eigenvalue: an eigenvector this good is as good as the solver's


def centred(maps: Maps) -> Tensor:
    """Lay maps out as batch x channel x cells, each channel with mean zero over its cells, and exactly zero where it is flat."""
    cells = maps.flatten(2)
    # measured from the first cell before the mean is taken, which may round to another number than that of a flat channel
    cells = cells - cells[:, :, :1]
    return cells - cells.mean(2, keepdim=True)


def principal_component(maps: Maps, *, facing: Facing) -> RawMaps:
    """Project each image's cells, as points in channel space around their mean, on the direction in which they vary most."""
    cells = centred(_exact(maps))
    if cells.shape[1] < cells.shape[2]:
        _, direction = _leading(cells @ cells.mT)
        component = (direction[:, None] @ cells)[:, 0]
    else:
        spread, along = _leading(cells.mT @ cells)
        component = spread.clamp(min=0).sqrt()[:, None] * along
    return _turned(component, cells, facing).reshape(len(maps), *maps.shape[2:]).to(maps)


def kernel_component(maps: Maps, kernel: Callable[[Tensor], Tensor]) -> RawMaps:
    """Project each image's cells on the first principal component of the space in which ``kernel`` is the inner product.

    ``kernel`` gets points, cells x channels, and returns their products, cells x cells. The component faces the mean.
    """
    cells = centred(_exact(maps))
    # image by image: the products of all cells with all cells are much larger than the maps
    components = torch.cat([_kernel_component(kernel(image.mT)) for image in cells])
    return _turned(components, cells, "mean").reshape(len(maps), *maps.shape[2:]).to(maps)


def _kernel_component(products: Tensor) -> Tensor:
    means = products.mean(0, keepdim=True)
    spread, along = _leading((products - means - means.mT + means.mean())[None])
    # the products of cells that are all alike differ by the rounding of these four terms, and its root would pass for a map
    rounding = 4 * len(products) * torch.finfo(products.dtype).eps * products.abs().amax()
    return torch.where(spread > rounding, spread, 0.0).sqrt()[:, None] * along


def _exact(maps: Maps) -> Maps:
    """Take maps to double precision: products of them lose half of the digits. Apple's GPU has none, so there the CPU does it."""
    return maps.cpu().double() if maps.device.type == "mps" else maps.double()


def _leading(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Find the largest eigenvalue and its eigenvector of each matrix of a batch; NaN where one is not finite."""
    wrong = ~symmetric.isfinite().all(2).all(1)[:, None]
    pairs = [_largest_pair(matrix) for matrix in symmetric.masked_fill(wrong[:, None], 0.0)]
    values, vectors = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return values, vectors.masked_fill(wrong, torch.nan)


def _largest_pair(matrix: Tensor) -> tuple[Tensor, Tensor]:
    found = _lanczos(matrix) if len(matrix) > _SMALL else None
    if found is not None:
        return found
    values, vectors = torch.linalg.eigh(matrix)
    return values[-1], vectors[:, -1]


def _lanczos(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Look for the largest eigenpair in a Krylov space (Lanczos 1950, every vector made orthogonal to all before it).

    One pair costs a few dozen products with the matrix, where all pairs cost its cube. None where it does not settle: the two
    largest eigenvalues lie too near each other.
    """
    start = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0), dtype=matrix.dtype).to(matrix.device)
    basis = (start / start.norm())[:, None]
    for _ in range(_ROUNDS):
        for _ in range(_BETWEEN_CHECKS):
            vector = matrix @ basis[:, -1]
            for _ in range(2):  # once leaves rounding behind
                vector = vector - basis @ (basis.mT @ vector)
            if not vector.norm() > 0:
                return None  # the space is full, as of a matrix of zeros
            basis = torch.cat([basis, (vector / vector.norm())[:, None]], 1)
        value, vector = (parts[..., -1] for parts in torch.linalg.eigh(basis.mT @ matrix @ basis))
        vector = basis @ vector
        if (matrix @ vector - value * vector).norm() <= _SETTLED * value.abs():
            return value, vector / vector.norm()
    return None


def _turned(component: Tensor, cells: Tensor, facing: Facing) -> Tensor:
    peak = torch.where(component.amax(1) >= -component.amin(1), 1.0, -1.0)
    sign = peak
    if facing == "mean":
        agreement = (component * cells.mean(1)).sum(1)
        scale = component.norm(dim=1) * cells.flatten(1).norm(dim=1) / cells.shape[1] ** 0.5
        sign = torch.where(agreement.abs() > _SAYS_NOTHING * scale, agreement.sign(), peak)
    return component * sign.to(component)[:, None]
