"""Proofs by gradients: where the cells of a layer look in the images, and whether all evidence goes through an output."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap import tree
from glowmap.layers.layout import Grid, Layout

_ZERO = 1e-6  # of the largest gradient: smaller ones count as none
_SAME = 1e-3  # the relative difference of two gradients that are the same but for rounding
_COMPETING = 6  # probed cells in each half of the grid, when the number of prefix tokens is proven
_TOO_FEW = 12  # cells; a smaller grid has halves too small to tell apart
_BESIDE = 1.1  # blurred cells may look so many times as much at a neighbour's place as at their own
_UNLIKE = 1.2  # so many times as much in one half of the grid as in the other: a token stands between them
_FLAT = 4.0  # times the mean: the largest value at most, where a cell looks everywhere
ALIGNED = 0.85  # the mean rank of the probed cells from which on a layout is proven
LOOSELY = 0.65  # the same where the axes leave no doubt; below it the model crops, flips or warps its input
# Probed cells along each axis, as shares of it: off the diagonal, so that exchanged axes show.
_PROBES = ((0.2, 0.8, 0.4, 0.65, 0.1), (0.8, 0.25, 0.1, 0.9, 0.5), (0.5, 0.9, 0.7, 0.3, 0.15))


def gradients(of: Tensor, by: Sequence[Tensor], weights: Tensor | None = None) -> list[Tensor | None]:
    """Differentiate one tensor by others and keep the graph; None for those that it does not depend on."""
    if not (of.requires_grad and by):
        return [None] * len(by)
    slopes = torch.autograd.grad(of, by, weights, retain_graph=True, allow_unused=True)
    return [None if slope is None else slope.detach() for slope in slopes]


def coverage(gradient: Tensor, layout: Layout) -> float:
    """Return the share of a layer's cells that have a gradient."""
    strength = layout.maps(gradient).float().abs().sum(1)
    return float((strength > _ZERO * strength.max()).float().mean())


def is_bottleneck(
    output: Tensor, gradient: Tensor, source: Tensor, whole: Tensor, layout: Layout | None = None
) -> bool:
    """Return whether all of the score's gradient at ``source`` comes through ``output``, which was computed from it.

    ``gradient`` is the score's at the output, ``whole`` the score's at the source. With a ``layout`` of the source, only its
    patches are compared, without prefix tokens.
    """
    (through,) = gradients(output, [source], gradient)
    if through is None:
        return False
    if layout is not None:
        through, whole = layout.maps(through), layout.maps(whole)
    scale = float(whole.float().norm())
    return scale > 0 and float((through.float() - whole.float()).norm()) <= _SAME * scale


class LayoutProof:
    """Tests whether the cells of a layer depend on the images where a layout puts these cells.

    ``images`` are the leaf of the graph, batch x colour x pixels. ``canvas`` is the size in pixels that the layers cover, which
    is larger than that of the images where the model pads these at their far ends.
    """

    def __init__(self, images: Tensor, canvas: Grid | None = None) -> None:
        self.images = images
        self.pixels = tuple(images.shape[2:]) if canvas is None else tuple(canvas)

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch, colours and the pixels that the layers cover."""
        return (*self.images.shape[:2], *self.pixels)

    def alignment(self, output: Tensor, layout: Layout, *, least: float = 0.0, image: int = 0) -> float:
        """Return how well cells depend on their own place in the image: 1 at best, 0.5 by chance.

        For a few cells the gradient with respect to the image is pooled to the grid, and the cell's own place is ranked in it. A
        layout with wrong axes, order or number of prefix tokens ranks like chance. Ends early where ``least`` is out of reach.
        """
        ranks: list[float] = []
        for cell in self._probed_cells(layout.grid):
            if sum(ranks) + len(_PROBES[0]) - len(ranks) < least * len(_PROBES[0]):
                break
            place = _flat_index(cell, layout.grid)
            energy = self._energy_of_cell(output, layout, place, image)
            if energy is None:
                return 0.0
            ranks.append(float((energy < energy[place]).float().sum() / max(energy.numel() - 1, 1)))
        return sum(ranks) / len(ranks)

    def is_aligned(self, output: Tensor, layout: Layout, *, least: float = ALIGNED, image: int = 0) -> bool:
        """Return whether cells look where the layout puts them."""
        return self.alignment(output, layout, least=least, image=image) >= least

    def is_proven(self, output: Tensor, layout: Layout, *, least: float = ALIGNED) -> bool:
        """Return whether cells look where the layout puts them, and the number of prefix tokens is right."""
        aligned = self.is_aligned(output, layout, least=least)
        return aligned and (not layout.prefix_tokens or self.is_unshifted(output, layout))

    def is_unshifted(self, output: Tensor, layout: Layout) -> bool:
        """Return whether the patches begin right after the prefix tokens and end with the grid, not one token later.

        Where patches overlap, the neighbour of a cell ranks high too. So the places of both neighbours compete with the cell's
        own, in each half of the grid, as a class token may stand in the middle.
        """
        cells, beside = math.prod(layout.grid), []
        if cells < _TOO_FEW:
            return True
        for start in (0, cells // 2):
            places = torch.linspace(start + 1, start + cells // 2 - 2, _COMPETING).round().long().tolist()
            sums = torch.zeros(3)
            for place in places:
                energy = self._energy_of_cell(output, layout, place, 0)
                if energy is None:
                    return False
                sums += (energy[place - 1 : place + 2] / energy.max()).cpu()
            beside.append(float(max(sums[0], sums[2]) / sums[1]))
        # a token in the middle shifts one half alone; blurred cells look beside their place in both halves alike
        return max(beside) <= 1 or (min(beside) <= _BESIDE and max(beside) <= _UNLIKE * min(beside))

    def is_global(self, output: Tensor, layout: Layout) -> bool:
        """Return whether single cells depend on the whole image alike, so that their place cannot be proven."""
        places = [_flat_index(cell, layout.grid) for cell in self._probed_cells(layout.grid)]
        energies = [self._energy_of_cell(output, layout, place, 0) for place in places]
        return all(energy is not None and float(energy.max()) <= _FLAT * float(energy.mean()) for energy in energies)

    def token_offset(self, output: Tensor, layout: Layout) -> Layout | None:
        """Find how many tokens stand before those of a grid, by where single tokens look; None where they disagree.

        Tokens of a text, of queries or of several levels may stand in the same sequence.
        """
        cells, tokens = math.prod(layout.grid), output.shape[1]
        votes: list[int] = []
        for share in (0.35, 0.5, 0.65):
            token = int(share * tokens)
            energy = self._energy(output[0, token].sum(), layout.grid)
            if energy is not None:
                votes.append(token - int(energy.argmax()))
        agreed = max(set(votes), key=votes.count) if votes else -1
        if votes.count(agreed) < 2 or not 0 <= agreed <= tokens - cells:
            return None
        return Layout("tokens", layout.grid, agreed, interleaved=True)

    def _energy_of_cell(self, output: Tensor, layout: Layout, place: int, image: int) -> Tensor | None:
        """Return how much a cell, summed over its channels with random signs, depends on each place of the image."""
        cell = layout.maps(output)[image].flatten(1)[:, place]
        return self._energy((tree.random_signs(cell) * cell).sum(), layout.grid, image)

    def _energy(self, of: Tensor, grid: Grid, image: int = 0) -> Tensor | None:
        """Pool the squared gradient with respect to an image to a grid, flattened."""
        (slope,) = gradients(of, [self.images])
        if slope is None:
            return None
        squared = slope[image : image + 1].float().square().sum(1, keepdim=True)
        pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(grid) - 1]
        energy: Tensor = pool(self._on_canvas(squared), grid)
        return energy.flatten()

    def _on_canvas(self, maps: Tensor) -> Tensor:
        """Pad maps of the images at their far ends, as the model pads the images."""
        missing = [canvas - size for canvas, size in zip(self.pixels, maps.shape[2:], strict=True)]
        return F.pad(maps, [pad for size in reversed(missing) for pad in (0, size)]) if any(missing) else maps

    def _probed_cells(self, grid: Grid) -> list[tuple[int, ...]]:
        """Choose the cells to probe, in the part of the grid that is not padding."""
        axes = [
            [min(int(share * filled * cells), cells - 1) for share in _PROBES[axis % 3]]
            for axis, (cells, filled) in enumerate(zip(grid, self._filled(), strict=True))
        ]
        return list(zip(*axes, strict=True))

    def _filled(self) -> list[float]:
        """Return the share of each axis of the canvas before the zeros at its far end, with which pictures are padded."""
        nonzero = self.images.detach().ne(0).any(0).any(0)
        shares = []
        for axis, pixels in enumerate(self.pixels):
            others = tuple(other for other in range(nonzero.ndim) if other != axis)
            last = (nonzero.any(others) if others else nonzero).nonzero()
            shares.append(float(last[-1] + 1) / pixels if len(last) else 1.0)
        return shares


def _flat_index(cell: Sequence[int], grid: Grid) -> int:
    return int(np.ravel_multi_index(tuple(cell), grid))
