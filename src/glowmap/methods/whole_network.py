"""Methods of the whole network: their maps lie on the input, and their gradients go back to it.

In the equations y is the score, x the image, c a colour, i and j a pixel. All show fine detail, which does not always come
from what the network learned. The sanity checks of Adebayo et al. (NeurIPS 2018, arXiv:1810.03292) replace learned weights by
random ones and test whether the map changes; each docstring gives the result.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._masks import apply_masks, min_max, rescale, resize
from glowmap.methods._method import Query, method
from glowmap.shapes import Images, Maps, RawMaps, Scores

PixelMaps = Float[Tensor, "batch *pixels"]  # raw maps on the input's grid, of methods that also need a layer
FinestMaps = Float[Tensor, "batch *cells"]  # on the grid of the finest of several layers


@method(
    paper="Simonyan et al., ICLR workshop 2014, arXiv:1312.6034, section 3.1",
    use="single pixels; passes the sanity checks, but is noisy",
)
def input_gradient(input_gradients: Images) -> RawMaps:
    """Show the gradient by the input: to which pixels the score is sensitive; noisy.

    ``max_c |dy/dx_cij|``, as in the paper, so the map has no sign. Others sum the absolute values of the colours, or the signed
    ones. It shows what would change the score, not what made it. It depends on the weights of every layer and passes the sanity
    checks of Adebayo et al.
    """
    return input_gradients.abs().amax(1)


@method(
    paper="Sundararajan et al., ICML 2017, arXiv:1703.01365, eq. 1",
    use="shares that sum to the score; partly shows the image whatever was learned",
    passes="32 forward and backward",
)
def integrated_gradients(
    images: Images, input_gradients_of_images: Query, *, steps: int = 32, baseline: float = 0.0
) -> RawMaps:
    """Integrate gradients on a path from a blank image to this one: every pixel's share of the score, with its sign.

    ``sum_c (x - x') integral_0^1 dy/dx (x' + t (x - x')) dt``. The integral is computed by the Gauss-Legendre rule with
    ``steps`` points; the paper sums the right ends of equal steps, which needs many more for the same error. ``baseline`` is
    the value of every pixel of x' in the units of the model's input: for normalised images 0 is the mean colour. The map sums
    to y(x) - y(x'); pixels with the value of the baseline get 0.

    The factor x - x' is the image: Adebayo et al. found that the map of a network with random weights still looks like it.
    """
    if steps < 1:
        raise MethodError(f"integrated_gradients has no {steps} steps; give at least 1")
    points, weights = np.polynomial.legendre.leggauss(steps)
    start = torch.full_like(images, baseline)
    difference = images - start
    shape = (-1, *[1] * (images.ndim - 1))
    t = torch.from_numpy((points + 1) / 2).to(images.device, images.dtype).reshape(shape)
    gradients: Tensor = input_gradients_of_images(steps, lambda part: start + t[part] * difference)
    mean = (torch.from_numpy(weights / 2).to(gradients).reshape(shape) * gradients).sum(0, keepdim=True)
    return (difference * mean).sum(1)


@method(
    paper="Smilkov et al., 2017, arXiv:1706.03825, the definition of SmoothGrad",
    use="single pixels, less noise; passes the sanity checks as the gradient does",
    passes="32 forward and backward",
)
def smooth_grad(
    images: Images, input_gradients_of_images: Query, *, samples: int = 32, spread: float = 0.15, seed: int = 0
) -> RawMaps:
    """Average the gradient by the input over noisy copies of the image: less noisy than the gradient alone.

    ``max_c |1/n sum_n dy/dx (x + N(0, sigma^2))|`` with ``n = samples`` and ``sigma = spread (max x - min x)``. The paper
    averages signed gradients and does not say how colours are combined; here it is done as in ``input_gradient``. The paper
    recommends spreads of 0.1 to 0.2, and finds little change beyond 50 samples.

    It depends on the weights of every layer, and passes the sanity checks of Adebayo et al.
    """
    if samples < 1:
        raise MethodError(f"smooth_grad has no {samples} samples; give at least 1")
    if spread < 0:
        raise MethodError(
            f"the spread {spread} of smooth_grad is negative; give a share of the image's range, such as 0.15"
        )
    seeds: list[int] = torch.randint(2**62, (samples,), generator=torch.Generator().manual_seed(seed)).tolist()
    deviation = spread * (images.max() - images.min())

    def noisy(part: slice) -> Tensor:
        # a generator for each sample, so that samples need not be kept and do not depend on the chunks
        generators = [torch.Generator().manual_seed(sample_seed) for sample_seed in seeds[part]]
        draws = [torch.randn(images.shape[1:], generator=generator) for generator in generators]
        return images + deviation * torch.stack(draws).to(images)

    gradients: Tensor = input_gradients_of_images(samples, noisy)
    return gradients.mean(0, keepdim=True).abs().amax(1)


@method(
    paper="Springenberg et al., ICLR workshop 2015, arXiv:1412.6806, section 3.4",
    use="sharp pictures; fails the sanity checks: shows edges whatever was learned",
)
def guided_backprop(guided_gradients: Images) -> RawMaps:
    """Pass only positive gradients back through every ReLU: sharp edges, which depend little on the class or the weights.

    ``sum_c R_cij`` where R is the gradient by the image with ``R_l = (f_l > 0) (R_l+1 > 0) R_l+1`` at every ReLU f_l (including
    ReLU6). Other activation functions pass the gradient unchanged, with a caution.

    Fails the sanity checks of Adebayo et al.: the map hardly depends on the weights of the higher layers or on the class. Nie
    et al. (ICML 2018, arXiv:1805.07039) prove why: it reconstructs the image. It is an illustration, not evidence.
    """
    return guided_gradients.sum(1)


@method(
    paper="Selvaraju et al., ICCV 2017, arXiv:1610.02391, the definition of Guided Grad-CAM",
    use="figures: edges where Grad-CAM is hot; fails the sanity checks, as guided_backprop does",
    passes="1 backward of the head + 1 forward and backward",
)
def guided_grad_cam(activations: Maps, gradients: Maps, guided_gradients: Images) -> PixelMaps:
    """Multiply guided backprop by the enlarged Grad-CAM: the image's edges, where the layer found the class.

    ``sum_c R_cij U_ij``: R is the map of ``guided_backprop`` before its sum over colours, U is Grad-CAM after its ReLU,
    enlarged to the input bilinearly as in the paper (Captum repeats the nearest cell).

    The place of the heat comes from Grad-CAM, which passes the sanity checks of Adebayo et al. The detail comes from guided
    backprop, and the product fails them.
    """
    space = tuple(range(2, gradients.ndim))
    cam = (gradients.mean(space, keepdim=True) * activations).sum(1, keepdim=True).relu()
    return (guided_gradients * resize(cam, guided_gradients.shape[2:]).to(guided_gradients.dtype)).sum(1)


@method(
    paper="Srinivas and Fleuret, NeurIPS 2019, arXiv:1905.00780, the definition of FullGrad",
    use="fine detail of ReLU networks, biases included; partly shows the image whatever was learned",
)
def full_grad(bias_gradients: Sequence[Tensor]) -> RawMaps:
    """Sum the contributions of the image and of every bias of the network to the score: complete for ReLU networks.

    ``psi(|x dy/dx|) + sum_l psi(|b_l dy/dz_l|)``, z_l the output of layer l, b_l what it adds: the bias of a convolution, the
    shift of a batch norm, a constant. psi rescales an image's minimum and maximum over all channels together to 0 and 1,
    enlarges bilinearly with aligned corners, and sums the channels, as in the authors' code. pytorch-grad-cam rescales every
    channel alone, which amplifies channels without effect. A term with the same value everywhere counts as 0.

    Linear layers after pooling belong to no place and are left out of the map, as the authors do. Without absolute values all
    terms sum to the score of a piecewise linear network; where they do not, there is a caution.

    The method was not part of the sanity checks of Adebayo et al.; its paper tests by removing pixels. Its terms depend on the
    weights of every layer; the first has the image as a factor and shows some of it whatever was learned.
    """
    image = bias_gradients[0]
    size = image.shape[2:]
    with_grid = [term for term in bias_gradients if term.ndim == image.ndim]
    return torch.stack([_psi(term, size) for term in with_grid]).sum(0)


def _psi(term: Maps, size: torch.Size) -> PixelMaps:
    """Apply the paper's psi to the magnitudes of a term, and sum the channels."""
    magnitude = term.abs()
    axes = tuple(range(1, term.ndim))
    scaled = rescale(magnitude, magnitude.amin(axes, keepdim=True), magnitude.amax(axes, keepdim=True))
    # enlarging is linear: the sum of the channels is enlarged instead of each
    return resize(scaled.sum(1, keepdim=True), size, corners=True)[:, 0]


@method(
    paper="Englebert et al., ICPR 2022, arXiv:2204.13359, PCAM+, PCAM- and PCAM+/-",
    use="sharp maps from several layers at once; slow: two passes a channel; no gradient to be fooled by",
    passes="2 per channel of every layer",
)
def poly_cam(
    images: Images, scores: Scores, activations_of_layers: list[Tensor], rescore_images: Query, *, weights: str = "both"
) -> FinestMaps:
    """Sharpen the last layer's map by the layers before it, each weighed by how its channels as masks change the score.

    From the last layer to the first: ``P = relu(sum_k w_k A_k)``, ``M = L(P) U(M of the layer after)``, where L divides a map
    by its mean at the coarser layer's resolution, so that only its detail within a coarse cell remains, and U enlarges. With
    the masks ``m_k`` (each channel rescaled to [0, 1] and enlarged) the weights are the gains of the masked image over a
    black one (``"plus"``: ``s(m_k x) - s(0)``), the positive losses under the inverse mask (``"minus"``: ``relu(s(x) - s((1 -
    m_k) x))``), or the positive part of the sum of both (``"both"``). The authors' code scores by the softmax, omits the
    black image, and rescales between the 0.1 and 99.9 percentiles; here the score is the target's, and channels are rescaled
    between minimum and maximum. The ReLU of the finest layer is the heatmap's step. Several layers give one map, at the
    finest. We know of no sanity check of it; its weights come from scores, not from gradients.
    """
    if weights not in _POLY_WEIGHTS:
        raise MethodError(f"poly_cam weighs by {', '.join(_POLY_WEIGHTS)}, not by {weights!r}")
    fused = signed = images.new_zeros(())
    for number, maps in enumerate(activations_of_layers):
        weighed = _poly_weights(maps, images, scores, rescore_images, weights)
        signed = (weighed.reshape(1, -1, *[1] * (maps.ndim - 2)) * maps).sum(1, keepdim=True)
        if number:
            mean = resize(resize(signed.relu(), fused.shape[2:]), maps.shape[2:])
            signed = signed / mean.clamp_min(_TINY) * resize(fused, maps.shape[2:])
        fused = signed.relu()
    return signed[:, 0]


_POLY_WEIGHTS = ("plus", "minus", "both")
_TINY = 1e-12  # keeps the division finite where a local mean is 0


def _poly_weights(maps: Maps, images: Images, scores: Scores, rescore_images: Query, weights: str) -> Tensor:
    def masked(part: slice) -> Tensor:
        return apply_masks(images, resize(min_max(maps[:, part]).transpose(0, 1), images.shape[2:]))

    def inverse(part: slice) -> Tensor:
        return images - masked(part)

    count = maps.shape[1]
    black: Tensor = rescore_images(1, lambda _: torch.zeros_like(images))
    gains: Tensor = rescore_images(count, masked) - black if weights != "minus" else maps.new_zeros(count)
    losses: Tensor = scores - rescore_images(count, inverse) if weights != "plus" else maps.new_zeros(count)
    return gains if weights == "plus" else (gains + losses).relu()
