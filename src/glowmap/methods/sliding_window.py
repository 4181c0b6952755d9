"""Methods that hide parts of the image and ask the model again: of the model they need no more than its answers.

Their maps lie on the input, and no layer is looked at.
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

# Masks that are made at once when the scores are known and only the masks are summed.
_SUMMED_AT_ONCE = 64


@method(
    paper="Petsiuk, Das and Saenko, BMVC 2018, arXiv:1806.07421, section 3",
    use="a black box: a judge of the other methods",
    passes="2000",
)
def rise(
    images: Images, rescore_images: Query, *, masks: int = 2000, cells: int = 7, keep: float = 0.5, seed: int = 0
) -> RawMaps:
    """Average random masks by the score of what they leave of the image: needs nothing of the model but its answers.

    ``1/(p N) sum_n s(x * M_n) M_n``. A mask is a grid of ``cells`` along each axis, each 1 with probability p =
    ``keep`` and else 0, enlarged bilinearly to one cell more than the image and shifted at random within one; drawn from
    ``seed``, N = ``masks`` times. The error falls with the root of N. Every place has a share of the mean score, so that it
    is the differences within the map that tell: its least value is taken off.
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
    """Average random masks by how well the detection survives them: RISE for detectors, with a finer grid.

    ``1/(p N) sum_n s(x * M_n) M_n`` with the masks of ``rise`` and the numbers of the paper, which leaves out the constant
    1/(p N). There s is the largest similarity (overlap of the boxes, cosine of the class scores, objectness) of any detection
    on the masked image to the one that is explained: the target gives it.
    """
    return _scored_masks(images, rescore_images, masks, cells, keep, seed)


@method(
    paper="Zeiler and Fergus, ECCV 2014, arXiv:1311.2901, section 4.2",
    use="a plain question: what if this were hidden?",
    passes="1 a window, some 200",
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
    """Slide a window over the image and show how far the score falls where it hides: simple to read.

    The map at a pixel is the mean of ``s(x) - s(x with the window set to value)`` over the windows that cover it. A window is
    ``window`` pixels along each axis (None: an eighth of the image's shortest) and moves by ``stride`` (None: half of that),
    the last ones flush with the edge. ``value`` is in the model's own units: 0 is grey for images normalised about their mean.
    """
    sides = images.shape[2:]
    if window is None:  # an axis of one pixel is no axis: a volume of one slice is a picture
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
    """Average random masks, each times the score of the image seen through it."""
    check_least(1, masks=count, cells=cells)
    if not 0 < keep <= 1:
        raise MethodError(f"keep is the probability that a cell is shown and {keep} is none; give one in (0, 1]")
    make = _random_masks(images, count, cells, keep, seed)
    scores: Tensor = ask(count, lambda part: apply_masks(images, make(part)))
    total = torch.zeros(images.shape[2:], dtype=images.dtype, device=images.device)
    for start in range(0, count, _SUMMED_AT_ONCE):  # made again rather than kept: all of them are gigabytes
        part = slice(start, min(start + _SUMMED_AT_ONCE, count))
        total += torch.tensordot(scores[part].to(total.dtype), make(part)[:, 0], 1)
    return subtract_minimum((total / (count * keep))[None])


def _random_masks(images: Tensor, count: int, cells: int, keep: float, seed: int) -> Callable[[slice], Tensor]:
    """Draw the masks' grids and shifts, and tell how to make a slice of the masks: count x 1 x pixels."""
    generator, size = torch.Generator().manual_seed(seed), images.shape[2:]
    steps = [ceil(side / cells) for side in size]  # pixels from cell to cell
    grids = torch.rand(count, *[cells] * len(size), generator=generator) < keep
    shifts = [torch.randint(step, (count,), generator=generator) for step in steps]
    unit = torch.eye(cells, dtype=images.dtype)[:, None]
    shares = [resize(unit, [(cells + 1) * step])[:, 0] for step in steps]  # of each cell in each pixel, along an axis

    def make(part: slice) -> Tensor:
        masks = grids[part].to(images)
        for side, share, shift in zip(size, shares, shifts, strict=True):  # an axis at a time, which goes to the end
            cut = share[:, shift[part, None] + torch.arange(side)].to(images.device)
            masks = torch.einsum("n...c,cnp->n...p", masks.movedim(1, -1), cut)
        return masks[:, None]

    return make


def _windows(side: int, window: int, stride: int) -> Tensor:
    """List the windows along an axis: window x pixel, 1 inside."""
    window = min(window, side)
    begins = torch.tensor([*range(0, side - window, stride), side - window])
    ahead = torch.arange(side) - begins[:, None]
    return (ahead >= 0) & (ahead < window)
