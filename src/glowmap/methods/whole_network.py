"""Methods of the whole network: their maps lie on the input itself, and the gradient goes all the way back to it.

In the equations y is the score, x the image, c a colour, i and j a pixel. All show fine detail, and what that detail is worth
differs: the sanity checks of Adebayo et al. (NeurIPS 2018, arXiv:1810.03292) put random numbers in the place of learned weights
and look whether the map changes; each docstring says what came out.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._masks import apply_masks, min_max, resize
from glowmap.methods._method import Query, method
from glowmap.shapes import Images, Maps, RawMaps, Scores

PixelMaps = Float[Tensor, "batch *pixels"]  # raw maps on the image's grid, beside evidence on a layer's
FinestMaps = Float[Tensor, "batch *cells"]  # on the grid of the finest of several layers


@method(
    paper="Simonyan et al., ICLR workshop 2014, arXiv:1312.6034, section 3.1",
    use="single pixels; passes the sanity checks, but is noisy",
    passes="1 both ways",
)
def input_gradient(images: Images, input_gradients: Query) -> RawMaps:
    """Take the gradient by the image itself: the plainest answer to which pixels the score reacts to, and a noisy one.

    ``max_c |dy/dx_cij|``, as the paper has it, so the map has no sign. Others add the absolute values of the colours, or the
    signed ones. It says what would change the score, not what made it. It depends on the weights of every layer and passes the
    sanity checks of Adebayo et al.
    """
    gradients: Tensor = input_gradients(1, lambda part: images[part])
    return gradients.abs().amax(1)


@method(
    paper="Sundararajan et al., ICML 2017, arXiv:1703.01365, eq. 1",
    use="shares that add up to the score; partly shows the image whatever was learned",
    passes="32 both ways",
)
def integrated_gradients(images: Images, input_gradients: Query, *, steps: int = 32, baseline: float = 0.0) -> RawMaps:
    """Add up gradients on the way from a blank image to this one: every pixel's share of the score, with its sign.

    ``sum_c (x - x') integral_0^1 dy/dx (x' + t (x - x')) dt``. The integral is taken at the ``steps`` points of the
    Gauss-Legendre rule; the paper adds up the right ends of equal steps, which needs many more for the same error.
    ``baseline`` is the value of every pixel of x' as the model sees it: for normalised images 0 is the mean colour. The map
    adds up to y(x) - y(x'); pixels that look like the baseline get nothing.

    The factor x - x' is the image: Adebayo et al. found that the map of a network with random weights still looks like it.
    """
    if steps < 1:
        raise MethodError(f"integrated_gradients has no {steps} steps; give at least 1")
    points, weights = np.polynomial.legendre.leggauss(steps)
    start = torch.full_like(images, baseline)
    way = images - start
    shape = (-1, *[1] * (images.ndim - 1))
    t = torch.from_numpy((points + 1) / 2).to(images.device, images.dtype).reshape(shape)
    gradients: Tensor = input_gradients(steps, lambda part: start + t[part] * way)
    mean = (torch.from_numpy(weights / 2).to(gradients).reshape(shape) * gradients).sum(0, keepdim=True)
    return (way * mean).sum(1)


@method(
    paper="Smilkov et al., 2017, arXiv:1706.03825, the definition of SmoothGrad",
    use="single pixels, less noise; passes the sanity checks as the gradient does",
    passes="32 both ways",
)
def smooth_grad(
    images: Images, input_gradients: Query, *, samples: int = 32, spread: float = 0.15, seed: int = 0
) -> RawMaps:
    """Average the gradient by the image over noisy copies of it: the plain gradient with its flicker taken off.

    ``max_c |1/n sum_n dy/dx (x + N(0, sigma^2))|`` with ``n = samples`` and ``sigma = spread (max x - min x)``. The paper means
    gradients with their sign and leaves open how colours are summed up: they are taken as in ``input_gradient`` here. Its
    spreads are 0.1 to 0.2, and more than 50 samples change little.

    It depends on the weights of every layer as the plain gradient does, and passes the sanity checks of Adebayo et al.
    """
    if samples < 1:
        raise MethodError(f"smooth_grad has no {samples} samples; give at least 1")
    if spread < 0:
        raise MethodError(f"the spread {spread} of smooth_grad is negative; give a share of the image's range, as 0.15")
    seeds: list[int] = torch.randint(2**62, (samples,), generator=torch.Generator().manual_seed(seed)).tolist()
    deviation = spread * (images.max() - images.min())

    def noisy(part: slice) -> Tensor:
        # a generator for each sample: none need wait in memory for its chunk, and all are the same in any
        draws = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(one)) for one in seeds[part]]
        return images + deviation * torch.stack(draws).to(images)

    gradients: Tensor = input_gradients(samples, noisy)
    return gradients.mean(0, keepdim=True).abs().amax(1)


@method(
    paper="Springenberg et al., ICLR workshop 2015, arXiv:1412.6806, section 3.4",
    use="crisp pictures; fails the sanity checks: shows edges whatever was learned",
    passes="1 both ways",
)
def guided_backprop(guided_gradients: Images) -> RawMaps:
    """Let only positive gradients back through every ReLU: crisp edges, which say little of this class or these weights.

    ``sum_c R_cij`` where R is the gradient by the image with ``R_l = (f_l > 0) (R_l+1 > 0) R_l+1`` at every ReLU f_l (ReLU6 among
    them). Other activations pass the gradient as it is, and a note says so.

    Fails the sanity checks of Adebayo et al.: the map hardly depends on the weights of the higher layers or on the class. Nie et
    al. (ICML 2018, arXiv:1805.07039) prove why: it restores the image. Look at it for beauty, not for evidence.
    """
    return guided_gradients.sum(1)


@method(
    paper="Selvaraju et al., ICCV 2017, arXiv:1610.02391, the definition of Guided Grad-CAM",
    use="figures: edges where Grad-CAM is hot; fails the sanity checks, as guided_backprop does",
    passes="1 backward of the head + 1 both ways",
)
def guided_grad_cam(activations: Maps, gradients: Maps, guided_gradients: Images) -> PixelMaps:
    """Multiply guided backprop with the enlarged Grad-CAM: the image's edges, where the layer found the class.

    ``sum_c R_cij U_ij``: R is the map of ``guided_backprop`` before its sum over colours, U is Grad-CAM after its ReLU, enlarged
    to the input bilinearly as the paper does (Captum repeats the nearest cell).

    Where it is hot comes from Grad-CAM, which passes the sanity checks of Adebayo et al.; the detail inside comes from guided
    backprop, and the product fails them.
    """
    space = tuple(range(2, gradients.ndim))
    cam = (gradients.mean(space, keepdim=True) * activations).sum(1, keepdim=True).relu()
    return (guided_gradients * resize(cam, guided_gradients.shape[2:]).to(guided_gradients.dtype)).sum(1)


@method(
    paper="Srinivas and Fleuret, NeurIPS 2019, arXiv:1905.00780, the definition of FullGrad",
    use="fine detail of ReLU networks; counts the biases too; partly shows the image whatever was learned",
    passes="1 both ways",
)
def full_grad(bias_gradients: Sequence[Tensor]) -> RawMaps:
    """Add up what the image and every bias of the network did to the score: complete for networks of ReLUs.

    ``psi(|x dy/dx|) + sum_l psi(|b_l dy/dz_l|)``, z_l what the layer l puts out, b_l what it adds: the bias of a convolution, the
    shift of a batch norm, a constant. psi takes the minimum and the maximum of an image over all its channels together, maps them
    to 0 and 1, enlarges bilinearly, corner on corner, and adds the channels up: all as the authors' code does. pytorch-grad-cam
    scales every channel by itself, which lifts channels that did nothing. What has the same value everywhere counts as nothing.

    Linear layers after pooling add to the score in no place and are left out of the map, as the authors do. Without absolute
    values all terms add up to the score of a piecewise linear network; a note says where they do not.

    It is younger than the sanity checks of Adebayo et al., and its paper tests by removing pixels instead. Its terms depend on
    the weights of every layer; the first one has the image as a factor and shows some of it whatever was learned.
    """
    image = bias_gradients[0]
    size = image.shape[2:]
    placed = [term for term in bias_gradients if term.ndim == image.ndim]
    return torch.stack([_spread_out(term, size) for term in placed]).sum(0)


def _spread_out(term: Maps, size: torch.Size) -> PixelMaps:
    """Apply the paper's psi, and add the channels up."""
    strength = term.abs()
    low = strength.flatten(1).amin(1).reshape(-1, *[1] * (term.ndim - 1))
    span = strength.flatten(1).amax(1).reshape(low.shape) - low
    scaled = torch.where(span == 0, 0, (strength - low) / span)
    # enlarging is linear: the sum of the channels is enlarged in their place
    return resize(scaled.sum(1, keepdim=True), size, corners=True)[:, 0]


@method(
    paper="Englebert et al., ICPR 2022, arXiv:2204.13359, PCAM+, PCAM- and PCAM+/-",
    use="sharp maps from several layers at once; slow: two passes a channel; no gradient to be fooled by",
    passes="2 a channel of every layer",
)
def poly_cam(
    images: Images, scores: Scores, activations_of_layers: list[Tensor], rescore_images: Query, *, weights: str = "both"
) -> FinestMaps:
    """Sharpen the last layer's map by the layers before it, each weighed by what its masks do to the score.

    From the last layer to the first: ``P = relu(sum_k w_k A_k)``, ``M = L(P) U(M of the layer after)``, where L divides a map by
    its own mean at the coarser layer's resolution, so that it says only where within a coarse cell, and U enlarges. With the
    masks ``m_k`` (each map stretched to [0, 1] and enlarged) the weights are the gains of the image seen through them over a
    black one (``"plus"``: ``s(m_k x) - s(0)``), the positive losses behind them (``"minus"``: ``relu(s(x) - s((1 - m_k) x))``),
    or the positive part of the sum of both (``"both"``). The authors' code scores by the softmax, leaves the black image out,
    and stretches between the 0.1 and 99.9 percentiles; here the score is the target's, and the stretch goes from the least to
    the largest. The finest layer's ReLU is the heatmap's step. It asks for several layers, and gives one map at the finest. No
    sanity check of it is known to us; its weights come from the model's answers, not from its gradients.
    """
    if weights not in _POLY_WEIGHTS:
        raise MethodError(f"poly_cam weighs by {', '.join(_POLY_WEIGHTS)}, not by {weights!r}")
    fused = signed = images.new_zeros(())
    for number, maps in enumerate(activations_of_layers):
        weighed = _poly_weights(maps, images, scores, rescore_images, weights)
        signed = (weighed.reshape(1, -1, *[1] * (maps.ndim - 2)) * maps).sum(1, keepdim=True)
        if number:
            mean = resize(resize(signed.relu(), fused.shape[2:]), maps.shape[2:])
            signed = signed / mean.clamp_min(_NOTHING) * resize(fused, maps.shape[2:])
        fused = signed.relu()
    return signed[:, 0]


_POLY_WEIGHTS = ("plus", "minus", "both")
_NOTHING = 1e-12  # a local mean below it belongs to a place without heat


def _poly_weights(maps: Maps, images: Images, scores: Scores, ask: Query, weights: str) -> Tensor:
    def seen(part: slice) -> Tensor:
        return apply_masks(images, resize(min_max(maps[:, part]).transpose(0, 1), images.shape[2:]))

    def hidden(part: slice) -> Tensor:
        return images - seen(part)

    count = maps.shape[1]
    black: Tensor = ask(1, lambda _: torch.zeros_like(images))
    gains: Tensor = ask(count, seen) - black if weights != "minus" else maps.new_zeros(count)
    losses: Tensor = scores - ask(count, hidden) if weights != "plus" else maps.new_zeros(count)
    return gains if weights == "plus" else (gains + losses).relu()
