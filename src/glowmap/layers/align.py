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
_COMPETING = 6  # cells of each half that are asked whether they look where they are or beside it
_TOO_FEW = 12  # cells, of whose halves nothing can be told apart
_BESIDE = 1.1  # times as much as at the own place may be looked at beside it where cells are blurred
_UNLIKE = 1.2  # times as much in one half of the grid as in the other tell that something stands between them
_FLAT = 4.0  # times the mean: what the most looked-at place gets at most where cells look everywhere
ALIGNED = 0.85  # the mean rank of the probed cells from which on a reading is proven
LOOSELY = 0.65  # the same where the axes leave no doubt: below it the picture was cut, turned or warped on the way
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


def aligned(put: Tensor, layout: Layout, images: Tensor, *, least: float = 0.0, image: int = 0) -> float:
    """Tell how well cells depend on the part of the picture where a layout has them: 1 for best, 0.5 for by chance.

    For a few cells the gradient by the picture is pooled to the grid, and the cell's own place is ranked in it. A reading that
    has the axes, the order or the offset of tokens wrong ranks as chance does. It ends early where ``least`` cannot be reached.
    """
    ranks: list[float] = []
    for cell in _cells(layout.grid, _filled(images)):
        if sum(ranks) + len(_PROBES[0]) - len(ranks) < least * len(_PROBES[0]):
            break
        place = _flat(cell, layout.grid)
        energy = _looks(put, layout, images, place, image)
        if energy is None:
            return 0.0
        ranks.append(float((energy < energy[place]).float().sum() / max(energy.numel() - 1, 1)))
    return sum(ranks) / len(ranks)


def proven(put: Tensor, layout: Layout, images: Tensor, *, least: float = ALIGNED, image: int = 0) -> bool:
    """Tell whether a reading is proven by where its cells look."""
    return aligned(put, layout, images, least=least, image=image) >= least


def stands(put: Tensor, layout: Layout, images: Tensor, *, least: float = ALIGNED) -> bool:
    """Tell whether a reading is proven, and that its patches stand behind the tokens before them, if there are any."""
    return proven(put, layout, images, least=least) and (not layout.before or unshifted(put, layout, images))


def unshifted(put: Tensor, layout: Layout, images: Tensor) -> bool:
    """Tell whether the patches stand right behind the tokens before them, from the first to the last, and not one further on.

    Where patches overlap, a cell's neighbour ranks high too: here all three places compete, in either half of the grid, as a
    class token may stand in the midst.
    """
    cells, beside = math.prod(layout.grid), []
    if cells < _TOO_FEW:
        return True
    for start in (0, cells // 2):
        places = torch.linspace(start + 1, start + cells // 2 - 2, _COMPETING).round().long().tolist()
        sums = torch.zeros(3)
        for place in places:
            energy = _looks(put, layout, images, place, 0)
            if energy is None:
                return False
            sums += (energy[place - 1 : place + 2] / energy.max()).cpu()
        beside.append(float(max(sums[0], sums[2]) / sums[1]))
    # a token in the midst shifts one half alone; blurred cells look beside themselves in both alike
    return max(beside) <= 1 or (min(beside) <= _BESIDE and max(beside) <= _UNLIKE * min(beside))


def _looks(put: Tensor, layout: Layout, images: Tensor, place: int, image: int) -> Tensor | None:
    """Tell how much a cell, all its channels with signs of their own, depends on each part of the picture."""
    maps = layout.maps(put)[image].flatten(1)
    signs = torch.randint(0, 2, (len(maps),), generator=torch.Generator().manual_seed(0)).to(maps) * 2 - 1
    return _energy(signs @ maps[:, place], images, layout.grid, image)


def scattered(put: Tensor, layout: Layout, images: Tensor) -> bool:
    """Tell whether single cells look at the whole picture alike, so that nothing can be said of where they lie."""
    places = [_flat(cell, layout.grid) for cell in _cells(layout.grid, _filled(images))]
    energies = [_looks(put, layout, images, place, 0) for place in places]
    return all(energy is not None and float(energy.max()) <= _FLAT * float(energy.mean()) for energy in energies)


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
    return Layout("tokens", layout.grid, agreed, among=True)


def _cells(grid: Grid, filled: Sequence[float]) -> list[tuple[int, ...]]:
    """Choose the cells to probe, in the part of the grid that is not padded."""
    axes = [
        [min(int(share * part * cells), cells - 1) for share in _PROBES[axis % 3]]
        for axis, (cells, part) in enumerate(zip(grid, filled, strict=True))
    ]
    return list(zip(*axes, strict=True))


def _filled(images: Tensor) -> list[float]:
    """Tell which share of each axis is not padded with zeros at its far end, of a canvas that a picture does not fill."""
    filled = images.detach().ne(0).any(0).any(0)
    shares = []
    for axis in range(filled.ndim):
        others = tuple(other for other in range(filled.ndim) if other != axis)
        line = filled.any(others) if others else filled
        last = line.nonzero()
        shares.append(float(last[-1] + 1) / len(line) if len(last) else 1.0)
    return shares


def _flat(cell: Sequence[int], grid: Grid) -> int:
    return int(np.ravel_multi_index(tuple(cell), grid))


def _energy(of: Tensor, images: Tensor, grid: Grid, image: int = 0) -> Tensor | None:
    (slope,) = gradients(of, [images])
    if slope is None:
        return None
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(grid) - 1]
    energy: Tensor = pool(slope[image : image + 1].float().square().sum(1, keepdim=True), grid)
    return energy.flatten()
