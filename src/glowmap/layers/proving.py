"""Proofs by the gradient that an output is read rightly, and that all evidence of the score goes through it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap.layers.layout import Grid, Layout

_DEAD = 1e-6  # of the largest gradient: what lies below is none
_SAME = 1e-3  # how far two gradients may differ that are the same but for rounding
ALIGNED = 0.85  # the mean rank of the probed cells from which on a reading is proven
# Where the probes lie along each axis, as shares of it: off the diagonal, so that exchanged axes show.
_PROBES = ((0.2, 0.8, 0.4, 0.65, 0.1), (0.8, 0.25, 0.1, 0.9, 0.5), (0.5, 0.9, 0.7, 0.3, 0.15))


def gradients(of: Tensor, by: Sequence[Tensor], weights: Tensor | None = None) -> list[Tensor | None]:
    """Differentiate, and keep the graph; None where there is no way from one to the other."""
    if not (of.requires_grad and by):
        return [None] * len(by)
    found = torch.autograd.grad(of, by, weights, retain_graph=True, allow_unused=True)
    return [None if one is None else one.detach() for one in found]


def coverage(gradient: Tensor, layout: Layout) -> float:
    """Tell at which share of the cells there is a gradient."""
    strength = layout.maps(gradient).float().abs().sum(1)
    return float((strength > _DEAD * strength.max()).float().mean())


def carries(put: Tensor, gradient: Tensor, source: Tensor, whole: Tensor, layout: Layout | None = None) -> bool:
    """Tell whether all of the score's gradient at a source comes through what was put out later.

    With a layout it is asked of the source's patches alone, not of the tokens beside them.
    """
    (through,) = gradients(put, [source], gradient)
    if through is None:
        return False
    if layout is not None:
        through, whole = layout.maps(through), layout.maps(whole)
    scale = float(whole.float().norm())
    return scale > 0 and float((through.float() - whole.float()).norm()) <= _SAME * scale


def aligned(put: Tensor, layout: Layout, images: Tensor, *, least: float = 0.0) -> float:
    """Tell how well cells depend on the part of the picture where a layout has them: 1 for best, 0.5 for by chance.

    For a few cells the gradient by the picture is pooled to the grid, and the cell's own place is ranked in it. A reading that
    has the axes, the order or the offset of tokens wrong ranks as chance does. It ends early where ``least`` cannot be reached.
    """
    maps = layout.maps(put)
    signs = torch.randint(0, 2, (maps.shape[1],), generator=torch.Generator().manual_seed(0)).to(maps) * 2 - 1
    ranks: list[float] = []
    for cell in _cells(layout.grid):
        if sum(ranks) + len(_PROBES[0]) - len(ranks) < least * len(_PROBES[0]):
            break
        energy = _energy(signs @ maps[0].flatten(1)[:, _flat(cell, layout.grid)], images, layout.grid)
        if energy is None:
            return 0.0
        ranks.append(
            float(
                (energy < energy[_flat(cell, layout.grid)]).float().mean() * energy.numel() / max(energy.numel() - 1, 1)
            )
        )
    return sum(ranks) / len(ranks)


def proven(put: Tensor, layout: Layout, images: Tensor, *, least: float = ALIGNED) -> bool:
    """Tell whether a reading is proven by where its cells look."""
    return aligned(put, layout, images, least=least) >= least


def offset(put: Tensor, layout: Layout, images: Tensor) -> Layout | None:
    """Find how many tokens stand before those of a grid by where single tokens look; None where they do not agree.

    Tokens of a text, queries or several levels may stand in the same sequence.
    """
    cells, tokens = math.prod(layout.grid), put.shape[1]
    votes: list[int] = []
    for share in (0.35, 0.5, 0.65):
        token = int(share * tokens)
        energy = _energy(put[0, token].sum(), images, layout.grid)
        if energy is not None:
            votes.append(token - int(energy.argmax()))
    agreed = max(set(votes), key=votes.count) if votes else -1
    if votes.count(agreed) < 2 or not 0 <= agreed <= tokens - cells:
        return None
    return Layout("tokens", layout.grid, agreed)


def _cells(grid: Grid) -> list[tuple[int, ...]]:
    axes = [[min(int(share * cells), cells - 1) for share in _PROBES[axis % 3]] for axis, cells in enumerate(grid)]
    return list(zip(*axes, strict=True))


def _flat(cell: Sequence[int], grid: Grid) -> int:
    return int(np.ravel_multi_index(tuple(cell), grid))


def _energy(of: Tensor, images: Tensor, grid: Grid) -> Tensor | None:
    (slope,) = gradients(of, [images])
    if slope is None:
        return None
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(grid) - 1]
    energy: Tensor = pool(slope[:1].float().square().sum(1, keepdim=True), grid)
    return energy.flatten()
