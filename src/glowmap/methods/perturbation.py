"""Methods that change a layer's activations, or mask the image by them, and run the model again.

In the equations A is the activations, x the image, s the score, k a channel, i and j a cell, and U enlarges to the image's
size. Methods that need no layer are in ``sliding_window.py``.
"""

from math import comb

import torch
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._masks import (
    above_rounding,
    apply_masks,
    apply_separable,
    check_least,
    min_max,
    outer_product,
    rescale,
    resize,
    subtract_minimum,
)
from glowmap.methods._method import Query, method
from glowmap.shapes import Images, Maps, RawMaps


@method(
    paper="Wang et al., CVPR workshops 2020, arXiv:1910.01279, algorithm 1",
    use="models without gradients, or with gradients that saturate",
    passes="1 per channel",
)
def score_cam(activations: Maps, images: Images, rescore_images: Query, *, corners: bool = False) -> Maps:
    """Weigh each channel by the score of the image masked by it: needs no gradient.

    ``sum_k w_k A_kij`` before the paper's ReLU, with ``w = softmax_k s(x * M_k)`` and M_k the channel's map as a mask in [0,
    1]. The paper subtracts a baseline's score inside the softmax, which changes nothing. Logits that differ by tens give all
    the weight to one channel; a score between 0 and 1 does not.

    The mask of the paper is ``minmax(U(A_k))``. By default the map is rescaled first and then enlarged, as in torch-cam. With
    ``corners`` it is enlarged first, with the centres of the outer cells on the image's edge, and then rescaled, as in
    pytorch-grad-cam.
    """

    def make_batch(part: slice) -> Tensor:
        return apply_masks(images, _channel_masks(activations[:, part], images, corners=corners))

    return _weigh(activations, rescore_images(activations.shape[1], make_batch).softmax(0))


@method(
    paper="Wang et al., 2020, arXiv:2006.14255, the variant with noise on the maps",
    use="Score-CAM with weights that depend less on one mask; slow",
    passes="35 per channel",
)
def ss_cam(
    activations: Maps, images: Images, rescore_images: Query, *, samples: int = 35, spread: float = 2.0, seed: int = 0
) -> Maps:
    """Weigh each channel by its mean score under noisy masks: a smoothed Score-CAM.

    ``sum_k w_k A_kij`` before the paper's ReLU, with ``w = softmax_k mean_n s(x * (M_k + e_n))``, M_k as in ``score_cam``.
    The noise e_n is normal with standard deviation ``spread``, one value for each pixel, drawn ``samples`` times from
    ``seed``. It is the same for all channels, so that they are compared fairly. As in torch-cam the sum is not clipped to [0,
    1].
    """
    check_least(1, samples=samples)
    generator, channels = torch.Generator().manual_seed(seed), activations.shape[1]
    drawn = torch.randn(samples, 1, *images.shape[2:], generator=generator).to(activations.device, activations.dtype)

    def make_batch(part: slice) -> Tensor:
        item = torch.arange(part.start, part.stop, device=activations.device)
        noise = spread * drawn[item // channels]
        return apply_masks(images, _channel_masks(activations[:, item % channels], images) + noise)

    scores: Tensor = rescore_images(samples * channels, make_batch)
    return _weigh(activations, scores.reshape(samples, channels).mean(0).softmax(0))


@method(
    paper="Naidu et al., 2020, arXiv:2010.03023, the definition of IS-CAM",
    use="Score-CAM for scores that saturate; slow",
    passes="10 per channel",
)
def is_cam(activations: Maps, images: Images, rescore_images: Query, *, steps: int = 10) -> Maps:
    """Weigh each channel by its mean score as its mask grows from zero to full strength: an integrated Score-CAM.

    ``sum_k w_k A_kij`` before the paper's ReLU, with ``w = softmax_k 1/N sum_n s(x * n/N M_k)`` for n = 1 ... N, N being
    ``steps`` and M_k as in ``score_cam``. torch-cam sums the factors n/N, to 5.5 for ten of them, so that the model gets
    images that are too bright; here no factor exceeds 1.
    """
    check_least(1, steps=steps)
    channels, axes = activations.shape[1], images.ndim - 2

    def make_batch(part: slice) -> Tensor:
        item = torch.arange(part.start, part.stop, device=activations.device)
        strength = ((1 + item // channels).to(activations.dtype) / steps).reshape(-1, 1, *[1] * axes)
        return apply_masks(images, strength * _channel_masks(activations[:, item % channels], images))

    scores: Tensor = rescore_images(steps * channels, make_batch)
    return _weigh(activations, scores.reshape(steps, channels).mean(0).softmax(0))


@method(
    paper="Chen et al., ACCV 2022, the definition of gScoreCAM",
    use="CLIP's convolutional towers; Score-CAM on wide layers",
    passes="1 backward of the head + 300",
)
def gscore_cam(
    activations: Maps, images: Images, gradients: Maps, rescore_images: Query, *, channels: int = 300
) -> RawMaps:
    """Apply Score-CAM to the channels with the largest mean gradients: nearly the same map for a fraction of the passes.

    ``score_cam`` of the ``channels`` with the largest ``1/Z sum_ij G_kij``, signed; the others have weight 0. (The authors'
    code takes the softmax over all channels, with the score 0 for those that were not run.)
    """
    check_least(1, channels=channels)
    best = gradients.flatten(2).mean(2)[0].argsort(descending=True, stable=True)[:channels]
    return score_cam(activations[:, best], images, rescore_images).sum(1)


@method(
    paper="Zhang, Rao and Yang, 2021, arXiv:2103.13859, the definition of Group-CAM",
    use="maps like those of Score-CAM in about thirty passes",
    passes="1 backward of the head + 33",
)
def group_cam(
    activations: Maps,
    gradients: Maps,
    images: Images,
    rescore_images: Query,
    *,
    groups: int = 32,
    threshold: float = 0.7,
    blur: int = 25,
) -> RawMaps:
    """Weigh groups of channels by how far each raises the score of a blurred image: a Score-CAM in about thirty passes.

    The Grad-CAM terms of consecutive channels are summed in ``groups`` groups. N_l is the positive part of such a sum, with
    cells up to the quantile ``threshold`` set to 0; the mask is ``M_l = minmax(U(N_l))``. With B the blurred image the map is
    ``sum_l a_l M_l``, ``a_l = s(x * M_l + B * (1 - M_l)) - s(B)``, before the paper's ReLU.

    The paper's map has the image's size. Enlarging and adding a constant commute, so this map, at the layer's resolution,
    becomes that one when it is enlarged. The blur is a Gaussian window of ``blur`` pixels to each side with twice that as its
    standard deviation, as the authors use for 224 x 224; at the edges it averages the pixels inside the image.
    """
    check_least(1, groups=groups, blur=blur)
    if not 0 <= threshold <= 1:
        raise MethodError(f"threshold is a share of the cells, not {threshold}; give a number in [0, 1]")
    masks = _group_masks(activations, gradients, images, groups, threshold)
    sharp = images.to(activations.dtype)
    blurred = apply_separable(sharp, [_blur_matrix(side, blur, sharp) for side in images.shape[2:]])
    shown = torch.cat([torch.zeros_like(masks[:, :1]), masks], 1)[0][:, None]  # first an empty mask: the blurred image

    def make_batch(part: slice) -> Tensor:
        through = resize(shown[part], images.shape[2:])
        return (sharp * through + blurred * (1 - through)).to(images.dtype)

    scores: Tensor = rescore_images(len(shown), make_batch)
    return _weigh(masks, scores[1:] - scores[0]).sum(1)


@method(
    paper="Desai and Ramaswamy, WACV 2020, the weights of Ablation-CAM",
    use="models without gradients, or with gradients that saturate",
    passes="1 of the head per channel",
)
def ablation_cam(activations: Maps, scores: Tensor, rescore_maps: Query) -> Maps:
    """Weigh each channel by how far the score falls without it: faithful weights without gradients.

    ``sum_k w_k A_kij`` before the paper's ReLU, with ``w_k = s - s_k``, s_k the score when channel k is set to 0. The paper
    divides by s, which it assumes to be positive. That is one factor for the whole map, which the heatmap's scaling removes; a
    negative score would invert the map, and a score of 0 break it. So it is left out.
    """

    def make_batch(part: slice) -> Tensor:
        without = torch.arange(part.start, part.stop)
        maps = activations.repeat(len(without), *[1] * (activations.ndim - 1))
        maps[torch.arange(len(without)), without] = 0
        return maps

    return _weigh(activations, above_rounding(scores, rescore_maps(activations.shape[1], make_batch)))


@method(
    paper="Byun and Lee, 2022, arXiv:2209.14074, the definition of Recipro-CAM",
    use="models without gradients, layers with few cells",
    passes="1 of the head per cell",
)
def recipro_cam(activations: Maps, rescore_maps: Query, *, radius: int = 1) -> RawMaps:
    """Score each cell with its nearest neighbours alone: no gradient, one pass of the head for each cell.

    The map at cell ij is ``s(A * g_ij)``, minus the least of these scores, as only their differences matter. g_ij is the
    Gaussian of 3 x 3 cells around ij with the factors 1/4, 1/2, 1/4 along each axis, cut off at the edges, 0 elsewhere.
    Another ``radius`` takes the binomial factors of that width; 0 takes the cell alone. An axis of one cell has no factor.
    The authors' code spreads the vector of the centre cell over the window; the paper, as here, multiplies the activations.
    They score by the class probability, rescaled to [0, 1]; here the score is the target's.
    """
    check_least(0, radius=radius)
    space = activations.shape[2:]
    windows = [_binomial(side, radius, activations) for side in space]
    scores: Tensor = rescore_maps(space.numel(), lambda part: activations * outer_product(windows, part))
    return subtract_minimum(scores.to(activations.dtype).reshape(1, *space))


@method(
    paper="Zhang et al., 2023, arXiv:2301.07002, the definition of Opti-CAM",
    use="the mask made of activations with the highest score",
    passes="50 forward and backward",
)
def opti_cam(
    activations: Maps, images: Images, input_gradients_of_images: Query, *, steps: int = 50, rate: float = 0.1
) -> Maps:
    """Optimise the channel weights for the score of the image masked by their map: what suffices for a high score.

    ``sum_k w_k A_kij`` with ``w = softmax(u)``, where u starts at 0 and Adam takes ``steps`` steps with the learning rate
    ``rate`` to maximise ``s(x * minmax(U(sum_k w_k A_k)))``. The authors' code rectifies A first and stops when the score
    falls; here neither is done. What suffices for a high score need not be what the model's score came from.
    """
    check_least(1, steps=steps)
    logits = torch.zeros(activations.shape[1], dtype=activations.dtype, device=activations.device, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=rate, maximize=True)
    for _ in range(steps):
        with torch.enable_grad():
            combined = _weigh(activations, logits.softmax(0)).sum(1, keepdim=True)
            mask = min_max(resize(combined, images.shape[2:]))
        masked = apply_masks(images, mask.detach())
        gradient: Tensor = input_gradients_of_images(1, masked.__getitem__)
        mask_gradient = (images * gradient).sum(1, keepdim=True).to(mask.dtype)
        (logits.grad,) = torch.autograd.grad(mask, logits, mask_gradient)
        optimiser.step()
    return _weigh(activations, logits.detach().softmax(0))


def _weigh(maps: Tensor, weights: Tensor) -> Tensor:
    """Multiply each channel of one image's maps by its weight."""
    return weights.to(maps.dtype).reshape(1, -1, *[1] * (maps.ndim - 2)) * maps


def _channel_masks(maps: Tensor, images: Tensor, *, corners: bool = False) -> Tensor:
    """Make a mask of the image from each channel of its activations: channel x 1 x pixels."""
    size = images.shape[2:]
    masks = min_max(resize(maps, size, corners=True)) if corners else resize(min_max(maps), size)
    return masks.transpose(0, 1)


def _group_masks(activations: Tensor, gradients: Tensor, images: Tensor, groups: int, threshold: float) -> Tensor:
    """Make the masks of the groups at the layer's resolution; each is in [0, 1] once it is enlarged to the image."""
    space = tuple(range(2, gradients.ndim))
    terms = gradients.mean(space, keepdim=True) * activations
    masks = []
    for group in terms.tensor_split(min(groups, terms.shape[1]), 1):
        summed = group.sum(1, keepdim=True).relu()
        highest = torch.where(summed > summed.flatten().quantile(threshold), summed, 0)
        large = resize(highest, images.shape[2:])
        masks.append(rescale(highest, large.min(), large.max()))
    return torch.cat(masks, 1)


def _distances(side: int, like: Tensor) -> Tensor:
    """Compute the distances of all cells of an axis from each other, side x side."""
    position = torch.arange(side, device=like.device)
    return (position[:, None] - position).abs()


def _blur_matrix(side: int, radius: int, like: Tensor) -> Tensor:
    """Make the matrix that blurs along an axis, old pixel x new pixel. Each column has the sum 1."""
    distances = _distances(side, like)
    weights = torch.where(distances <= radius, (-0.5 * (distances.to(like.dtype) / (2 * radius)) ** 2).exp(), 0)
    return weights / weights.sum(0)


def _binomial(side: int, radius: int, like: Tensor) -> Tensor:
    """Make the binomial factors along an axis of the window around each cell: window x cell."""
    if side == 1:
        return like.new_ones(1, 1)
    factors = [comb(2 * radius, radius + cells) / 4**radius if cells <= radius else 0.0 for cells in range(side)]
    return like.new_tensor(factors)[_distances(side, like)]
