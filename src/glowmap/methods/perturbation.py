"""Methods that change a layer's maps, or mask the image by them, and ask the model again.

In the equations A is the activations, x the image, s the score, k a channel, i and j a cell, and U enlarges to the image's size.
Masks are of the image; what has no channel of its own to weigh lies in ``occlusion.py``.
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
    use="no gradients to be had, or none that are trusted",
    passes="1 a channel",
)
def score_cam(activations: Maps, images: Images, rescore_images: Query, *, corners: bool = False) -> Maps:
    """Weigh each channel by the score of the image seen through it: needs no gradient.

    ``sum_k w_k A_kij`` before the paper's ReLU, with ``w = softmax_k s(x * M_k)`` and M_k the channel's map as a mask in
    [0, 1]. The paper subtracts a baseline's score inside the softmax, where a constant drops out. Over logits that lie apart
    by tens the softmax gives all the weight to one channel: a score between 0 and 1 keeps it gentle.

    The paper's mask is ``minmax(U(A_k))``. As a default the map is stretched first and enlarged then, cells being areas
    (torch-cam); ``corners`` enlarges first, the outer cells' centres on the image's edge, and stretches then (pytorch-grad-cam).
    """

    def make(part: slice) -> Tensor:
        return apply_masks(images, _channel_masks(activations[:, part], images, corners=corners))

    return _weighed(activations, rescore_images(activations.shape[1], make).softmax(0))


@method(
    paper="Wang et al., 2020, arXiv:2006.14255, the variant with noise on the maps",
    use="Score-CAM with weights that hang less on one mask; slow",
    passes="35 a channel",
)
def ss_cam(
    activations: Maps, images: Images, rescore_images: Query, *, samples: int = 35, spread: float = 2.0, seed: int = 0
) -> Maps:
    """Weigh each channel by its mean score under noisy masks: Score-CAM, smoothed.

    ``sum_k w_k A_kij`` before the paper's ReLU, with ``w = softmax_k mean_n s(x * (M_k + e_n))``, M_k as in ``score_cam``.
    The noise e_n is normal, of deviation ``spread``, a value a pixel, and the same for all channels, which are so compared on
    equal terms; as in torch-cam the sum is not cut back to [0, 1]. It is drawn from ``seed``, ``samples`` times.
    """
    check_least(1, samples=samples)
    generator, channels = torch.Generator().manual_seed(seed), activations.shape[1]
    drawn = torch.randn(samples, 1, *images.shape[2:], generator=generator).to(activations.device, activations.dtype)

    def make(part: slice) -> Tensor:
        item = torch.arange(part.start, part.stop, device=activations.device)
        noise = spread * drawn[item // channels]
        return apply_masks(images, _channel_masks(activations[:, item % channels], images) + noise)

    scores: Tensor = rescore_images(samples * channels, make)
    return _weighed(activations, scores.reshape(samples, channels).mean(0).softmax(0))


@method(
    paper="Naidu et al., 2020, arXiv:2010.03023, the definition of IS-CAM",
    use="Score-CAM for scores that saturate; slow",
    passes="10 a channel",
)
def is_cam(activations: Maps, images: Images, rescore_images: Query, *, steps: int = 10) -> Maps:
    """Weigh each channel by its mean score as its mask grows from nothing to full strength: Score-CAM, integrated.

    ``sum_k w_k A_kij`` before the paper's ReLU, with ``w = softmax_k 1/N sum_n s(x * n/N M_k)`` for n = 1 ... N, N being
    ``steps`` and M_k as in ``score_cam``. torch-cam adds the factors n/N up, to 5.5 with ten of them, and so shows the model
    images brighter than any; here none exceeds 1.
    """
    check_least(1, steps=steps)
    channels, axes = activations.shape[1], images.ndim - 2

    def make(part: slice) -> Tensor:
        item = torch.arange(part.start, part.stop, device=activations.device)
        strength = ((1 + item // channels).to(activations.dtype) / steps).reshape(-1, 1, *[1] * axes)
        return apply_masks(images, strength * _channel_masks(activations[:, item % channels], images))

    scores: Tensor = rescore_images(steps * channels, make)
    return _weighed(activations, scores.reshape(steps, channels).mean(0).softmax(0))


@method(
    paper="Chen et al., ACCV 2022, the definition of gScoreCAM",
    use="CLIP's convolutional towers; Score-CAM on wide layers",
    passes="1 backward of the head + 300",
)
def gscore_cam(
    activations: Maps, images: Images, gradients: Maps, rescore_images: Query, *, channels: int = 300
) -> RawMaps:
    """Apply Score-CAM to the channels with the largest mean gradients: most of it for a fraction of the passes.

    ``score_cam`` of the ``channels`` with the largest ``1/Z sum_ij G_kij``, signed; the others weigh nothing. (The authors'
    code takes the softmax over all channels, with 0 for the score of those that were never asked about.)
    """
    check_least(1, channels=channels)
    best = gradients.flatten(2).mean(2)[0].argsort(descending=True, stable=True)[:channels]
    return score_cam(activations[:, best], images, rescore_images).sum(1)


@method(
    paper="Zhang, Rao and Yang, 2021, arXiv:2103.13859, the definition of Group-CAM",
    use="Score-CAM's kind of map in some thirty passes",
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
    """Weigh groups of channels by how far each lifts the score of a blurred image: Score-CAM in some thirty passes.

    The Grad-CAM terms of neighbouring channels are summed in ``groups``, made positive, and cells up to the quantile
    ``threshold`` set to 0, which gives N_l; the mask is ``M_l = minmax(U(N_l))``. With B the blurred image the map is
    ``sum_l a_l M_l``, ``a_l = s(x * M_l + B * (1 - M_l)) - s(B)``, before the paper's ReLU.

    The paper's map has the image's size. Enlarging and shifting by a constant can be done in either order, so this one, at
    the layer's resolution, becomes that one when it is enlarged. The blur is a Gaussian of ``blur`` pixels to each side with
    twice that deviation, as the authors use on 224 x 224, weighing at the edges only pixels that are there.
    """
    check_least(1, groups=groups, blur=blur)
    if not 0 <= threshold <= 1:
        raise MethodError(f"threshold is a share of the cells and {threshold} is none; give one in [0, 1]")
    masks = _group_masks(activations, gradients, images, groups, threshold)
    sharp = images.to(activations.dtype)
    blurred = apply_separable(sharp, [_blurring(side, blur, sharp) for side in images.shape[2:]])
    shown = torch.cat([torch.zeros_like(masks[:, :1]), masks], 1)[0][:, None]  # first, none of it: the blurred image

    def make(part: slice) -> Tensor:
        through = resize(shown[part], images.shape[2:])
        return (sharp * through + blurred * (1 - through)).to(images.dtype)

    scores: Tensor = rescore_images(len(shown), make)
    return _weighed(masks, scores[1:] - scores[0]).sum(1)


@method(
    paper="Desai and Ramaswamy, WACV 2020, the weights of Ablation-CAM",
    use="gradients that saturate, or are not to be had",
    passes="1 of the head a channel",
)
def ablation_cam(activations: Maps, scores: Tensor, rescore_maps: Query) -> Maps:
    """Weigh each channel by how far the score falls without it: a faithful weight without a gradient.

    ``sum_k w_k A_kij`` before the paper's ReLU, with ``w_k = s - s_k``, s_k the score when channel k is set to 0. The paper
    divides by s, which it takes to be positive. That is one factor for the whole map, and the heatmap's scale takes it out; but
    a negative score would turn the map upside down, and a score of 0 break it, so it is left out.
    """

    def make(part: slice) -> Tensor:
        without = torch.arange(part.start, part.stop)
        maps = activations.repeat(len(without), *[1] * (activations.ndim - 1))
        maps[torch.arange(len(without)), without] = 0
        return maps

    return _weighed(activations, above_rounding(scores, rescore_maps(activations.shape[1], make)))


@method(
    paper="Byun and Lee, 2022, arXiv:2209.14074, the definition of Recipro-CAM",
    use="no gradients to be had, and few cells",
    passes="1 of the head a cell",
)
def recipro_cam(activations: Maps, rescore_maps: Query, *, radius: int = 1) -> RawMaps:
    """Score each cell alone with its nearest neighbours: no gradient, and a pass of the head for each cell.

    The map at cell ij is ``s(A * g_ij)``, less the least of them, since it is their order that tells; g_ij is the Gaussian of
    3 x 3 cells around ij whose factors along an axis are 1/4, 1/2, 1/4, cut off at the edges, 0 elsewhere. Another ``radius``
    takes the binomial factors of that width; 0 leaves the cell alone. An axis of one cell has no neighbours and no factor. The
    authors' code spreads the vector of the centre cell over the window; the paper, as here, multiplies the maps. They show class
    probabilities, stretched to [0, 1]; here it is whatever score is asked for.
    """
    check_least(0, radius=radius)
    space = activations.shape[2:]
    bells = [_bell(side, radius, activations) for side in space]
    scores: Tensor = rescore_maps(space.numel(), lambda part: activations * outer_product(bells, part))
    return subtract_minimum(scores.to(activations.dtype).reshape(1, *space))


@method(
    paper="Zhang et al., 2023, arXiv:2301.07002, the definition of Opti-CAM",
    use="the mask of the layer's maps that the model likes best",
    passes="50 both ways",
)
def opti_cam(activations: Maps, images: Images, input_gradients: Query, *, steps: int = 50, rate: float = 0.1) -> Maps:
    """Look for the weights whose map, as a mask, raises the score most: what suffices for the model, place by place.

    ``sum_k w_k A_kij`` with ``w = softmax(u)``, where u starts at 0 and Adam takes ``steps`` of ``rate`` up
    ``s(x * minmax(U(sum_k w_k A_k)))``. The authors' code rectifies A first and stops when the score falls; here neither is
    done. The map says what suffices for a high score, which need not be what made it.
    """
    check_least(1, steps=steps)
    logits = torch.zeros(activations.shape[1], dtype=activations.dtype, device=activations.device, requires_grad=True)
    climb = torch.optim.Adam([logits], lr=rate, maximize=True)
    for _ in range(steps):
        with torch.enable_grad():
            combined = _weighed(activations, logits.softmax(0)).sum(1, keepdim=True)
            mask = min_max(resize(combined, images.shape[2:]))
        shown = apply_masks(images, mask.detach())
        slopes: Tensor = input_gradients(1, shown.__getitem__)
        up = (images * slopes).sum(1, keepdim=True).to(mask.dtype)
        (logits.grad,) = torch.autograd.grad(mask, logits, up)
        climb.step()
    return _weighed(activations, logits.detach().softmax(0))


def _weighed(maps: Tensor, weights: Tensor) -> Tensor:
    """Sum the channels of one image's maps, each times its weight."""
    return weights.to(maps.dtype).reshape(1, -1, *[1] * (maps.ndim - 2)) * maps


def _channel_masks(maps: Tensor, images: Tensor, *, corners: bool = False) -> Tensor:
    """Make one mask of the image from each channel of its maps: channel x 1 x pixels."""
    size = images.shape[2:]
    masks = min_max(resize(maps, size, corners=True)) if corners else resize(min_max(maps), size)
    return masks.transpose(0, 1)


def _group_masks(activations: Tensor, gradients: Tensor, images: Tensor, groups: int, threshold: float) -> Tensor:
    """Make the groups' masks at the layer's resolution, such that each is in [0, 1] once it is enlarged to the image."""
    space = tuple(range(2, gradients.ndim))
    terms = gradients.mean(space, keepdim=True) * activations
    masks = []
    for group in terms.tensor_split(min(groups, terms.shape[1]), 1):
        summed = group.sum(1, keepdim=True).relu()
        kept = torch.where(summed > summed.flatten().quantile(threshold), summed, 0)
        large = resize(kept, images.shape[2:])
        masks.append(rescale(kept, large.min(), large.max()))
    return torch.cat(masks, 1)


def _distances(side: int, like: Tensor) -> Tensor:
    """Tell how many cells lie between any two of an axis, side x side."""
    place = torch.arange(side, device=like.device)
    return (place[:, None] - place).abs()


def _blurring(side: int, radius: int, like: Tensor) -> Tensor:
    """Make the matrix that blurs along an axis: from a pixel x to a pixel, each column adding up to 1."""
    far = _distances(side, like)
    weights = torch.where(far <= radius, (-0.5 * (far.to(like.dtype) / (2 * radius)) ** 2).exp(), 0)
    return weights / weights.sum(0)


def _bell(side: int, radius: int, like: Tensor) -> Tensor:
    """Make the factors along an axis of the windows around each of its cells: window x cell."""
    if side == 1:
        return like.new_ones(1, 1)
    factors = [comb(2 * radius, radius + far) / 4**radius if far <= radius else 0.0 for far in range(side)]
    return like.new_tensor(factors)[_distances(side, like)]
