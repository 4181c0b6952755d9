"""Methods that hide parts of the image and run the model again. They need nothing of the model but its scores.

Their maps lie on the input; no layer is needed.
"""

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._masks import (
    above_rounding,
    apply_masks,
    apply_separable,
    check_least,
    outer_product,
    resize,
    subtract_minimum,
)
from glowmap.methods._method import Query, method
from glowmap.shapes import Images, RawMaps, Scores

_SUMMED_AT_ONCE = 64  # masks, once the scores are known


@method(
    paper="Petsiuk, Das and Saenko, BMVC 2018, arXiv:1806.07421, section 3",
    use="black boxes; a check of other methods",
    passes="2000",
)
def rise(
    images: Images, rescore_images: Query, *, masks: int = 2000, cells: int = 7, keep: float = 0.5, seed: int = 0
) -> RawMaps:
    """Average random masks, each weighted by the score of the masked image: needs nothing of the model but its scores.

    ``1/(p N) sum_n s(x * M_n) M_n``. A mask is a grid of ``cells`` cells along each axis, each 1 with probability p =
    ``keep`` and otherwise 0, enlarged bilinearly to one cell more than the image and shifted at random by up to a cell. N =
    ``masks`` masks are drawn from ``seed``; the error falls with the root of N. Every pixel gets a share of the mean score,
    so only differences within the map matter, and its least value is subtracted.
    """
    return _scored_masks(images, rescore_images, masks, cells, keep, seed)


@method(
    paper="Petsiuk et al., CVPR 2021, arXiv:2006.03204, section 3",
    use="detectors, with a target that compares detections",
    passes="5000",
    for_detections=True,
)
def d_rise(
    images: Images, rescore_images: Query, *, masks: int = 5000, cells: int = 16, keep: float = 0.5, seed: int = 0
) -> RawMaps:
    """Average random masks, each weighted by how well a detection survives it: RISE for detectors, with a finer grid.

    ``1/(p N) sum_n s(x * M_n) M_n`` with the masks of ``rise`` and the parameters of the paper, which omits the constant 1/(p
    N). In the paper s is the largest similarity (overlap of the boxes, cosine of the class scores, objectness) between the
    explained detection and any detection in the masked image; here the target computes it.
    """
    return _scored_masks(images, rescore_images, masks, cells, keep, seed)


@method(
    paper="Zeiler and Fergus, ECCV 2014, arXiv:1311.2901, section 4.2",
    use="maps in units of the score: how far it falls where a part is hidden",
    passes="1 per window, some 200",
)
def occlusion(
    images: Images,
    rescore_images: Query,
    scores: Scores,
    *,
    window: int | None = None,
    stride: int | None = None,
    value: float = 0.0,
) -> RawMaps:
    """Slide a window over the image and show how far the score falls where it hides the image: simple to read.

    The map at a pixel is the mean of ``s(x) - s(x with the window set to value)`` over the windows that cover it. A window
    has ``window`` pixels along each axis (None: an eighth of the shortest side) and moves by ``stride`` pixels (None: half a
    window); the last window along an axis ends at the edge. ``value`` is in the units of the model's input: 0 is the mean
    colour for normalised images.
    """
    sides = images.shape[2:]
    if window is None:  # axes of one pixel do not count: a volume of one slice is a picture
        window = max(1, round(min((side for side in sides if side > 1), default=1) / 8))
    if stride is None:
        stride = max(1, window // 2)
    check_least(1, window=window, stride=stride)
    if stride > window:
        raise MethodError(f"a stride of {stride} skips pixels between windows of {window}; give at most {window}")
    windows = [_windows(side, window, stride).to(scores) for side in sides]
    counts = torch.Size(len(axis) for axis in windows)

    def make(part: slice) -> Tensor:
        return torch.where(outer_product(windows, part) > 0, value, images)

    drops = above_rounding(scores, rescore_images(counts.numel(), make)).reshape(counts)
    return (apply_separable(drops, windows) / apply_separable(torch.ones_like(drops), windows))[None]


def _scored_masks(images: Tensor, ask: Query, count: int, cells: int, keep: float, seed: int) -> Tensor:
    """Average random masks, each times the score of the masked image."""
    check_least(1, masks=count, cells=cells)
    if not 0 < keep <= 1:
        raise MethodError(f"keep is the probability that a cell is shown, not {keep}; give a number in (0, 1]")
    make = _random_masks(images, count, cells, keep, seed)
    scores: Tensor = ask(count, lambda part: apply_masks(images, make(part)))
    total = torch.zeros(images.shape[2:], dtype=images.dtype, device=images.device)
    for start in range(0, count, _SUMMED_AT_ONCE):  # made again, as all of them together are gigabytes
        part = slice(start, min(start + _SUMMED_AT_ONCE, count))
        total += torch.tensordot(scores[part].to(total.dtype), make(part)[:, 0], 1)
    return subtract_minimum((total / (count * keep))[None])


def _random_masks(images: Tensor, count: int, cells: int, keep: float, seed: int) -> Callable[[slice], Tensor]:
    """Draw the grids and shifts of random masks. Returns a function that makes a slice of the masks, count x 1 x pixels."""
    generator, size = torch.Generator().manual_seed(seed), images.shape[2:]
    steps = [ceil(side / cells) for side in size]  # pixels from cell to cell
    grids = torch.rand(count, *[cells] * len(size), generator=generator) < keep
    shifts = [torch.randint(step, (count,), generator=generator) for step in steps]
    unit = torch.eye(cells, dtype=images.dtype)[:, None]
    weights = [resize(unit, [(cells + 1) * step])[:, 0] for step in steps]  # of each cell at each pixel, along an axis

    def make(part: slice) -> Tensor:
        masks = grids[part].to(images)
        for side, axis, shift in zip(size, weights, shifts, strict=True):  # the enlarged axis goes to the end
            shifted = axis[:, shift[part, None] + torch.arange(side)].to(images.device)
            masks = torch.einsum("n...c,cnp->n...p", masks.movedim(1, -1), shifted)
        return masks[:, None]

    return make


def _windows(side: int, window: int, stride: int) -> Tensor:
    """List the windows along an axis: window x pixel, 1 inside."""
    window = min(window, side)
    starts = torch.tensor([*range(0, side - window, stride), side - window])
    offsets = torch.arange(side) - starts[:, None]
    return (offsets >= 0) & (offsets < window)
