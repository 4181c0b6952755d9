"""Methods that weigh activations by the gradients of the score: one forward pass, and one backward pass of the head.

The last three cost more: curvature, gradients at noisy images, gradients along a path.

Most return the terms of the sum over channels, batch x channel x grid, and leave the sum to :class:`Method`. In the equations
A is the activations, G = ds/dA the gradients of the score s, k a channel, i and j a cell, Z the number of cells.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._method import Query, method
from glowmap.methods._spectral import principal_component
from glowmap.shapes import Images, Maps, RawMaps

_POOLS: dict[str, dict[int, Callable[..., Tensor]]] = {  # by the number of the grid's axes
    "mean": {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d},
    "max": {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d},
}


@method(
    paper="Selvaraju et al., ICCV 2017, arXiv:1610.02391, eq. 1 and 2",
    use="the last layer of a classifier",
    pools=True,
)
def grad_cam(activations: Maps, gradients: Maps) -> Maps:
    """Weigh each channel by its mean gradient: the best-known method.

    Equation 1: ``w_k = 1/Z sum_ij G_kij``; equation 2 before its ReLU, which is the heatmap's step here: ``sum_k w_k A_kij``.
    """
    weights = gradients.mean(_grid(gradients), keepdim=True)
    return weights * activations


@method(
    paper="Draelos and Carin, 2020, arXiv:2011.08891, the definition of HiResCAM",
    use="heads that do not pool: segmentation, detection, flattened maps",
)
def hires_cam(activations: Maps, gradients: Maps) -> Maps:
    """Weigh each cell of each channel by its gradient: the map is zero wherever the score does not depend on the layer.

    ``sum_k G_kij A_kij``. After the last convolution, under a single linear layer, the map's sum plus the bias is the score.
    """
    return gradients * activations


@method(
    paper="Jiang et al., IEEE TIP 2021, doi:10.1109/TIP.2021.3089943, the definition of LayerCAM",
    use="earlier, finer layers",
)
def layer_cam(activations: Maps, gradients: Maps) -> Maps:
    """Weigh each cell of each channel by its gradient if that is positive: for earlier, finer layers.

    ``sum_k relu(G_kij) A_kij``, before the paper's last ReLU, which is the heatmap's step here.
    """
    return gradients.relu() * activations


@method(
    paper="Chattopadhyay et al., WACV 2018, arXiv:1710.11063, eq. 19",
    use="several objects of one class",
    pools=True,
)
def grad_cam_pp(activations: Maps, gradients: Maps) -> Maps:
    """Weigh each channel by its positive gradients, small active regions as much as large ones: for several objects of a class.

    Equation 19: ``alpha_kij = G_kij^2 / (2 G_kij^2 + (sum_ab A_kab) G_kij^3)``, which holds for a score that is an exponential,
    and is used for any; ``w_k = sum_ij alpha_kij relu(G_kij)``; before the last ReLU ``sum_k w_k A_kij``. A cell without
    gradient has no alpha. The equation expects positive maps: where a channel's sum is negative, the denominator can come near
    zero (where it is zero, alpha is 0). The peers differ: pytorch-grad-cam adds 1e-6 to the denominator, which drowns gradients
    below a thousandth; torch-cam never divides.
    """
    totals = activations.sum(_grid(activations), keepdim=True)
    # the fraction without the G^2 on both its sides, which vanishes in single precision where G is small
    weights = _ratio(gradients.relu(), 2 + totals * gradients).sum(_grid(gradients), keepdim=True)
    return weights * activations


@method(
    paper="Fu et al., BMVC 2020, arXiv:2008.02312, the definition of XGrad-CAM",
    use="layers after a ReLU, with heads that do not pool",
    pools=True,
)
def xgrad_cam(activations: Maps, gradients: Maps) -> Maps:
    """Weigh each channel by its gradient averaged with the activations as weights: a Grad-CAM with the sum of HiResCAM.

    ``w_k = sum_ij G_kij A_kij / sum_ij A_kij``, then ``sum_k w_k A_kij``. A channel whose sum is zero within rounding (as
    after an instance norm) has weight 0. A channel with values of both signs can have a sum near zero and then a far too
    large weight, so name a layer after a ReLU. Where only averaging and linear layers follow, it is Grad-CAM.
    """
    grid = _grid(activations)
    totals, sizes = activations.sum(grid, keepdim=True), activations.abs().sum(grid, keepdim=True)
    known = totals.abs() > 16 * torch.finfo(totals.dtype).eps * sizes
    weights = _ratio((gradients * activations).sum(grid, keepdim=True), torch.where(known, totals, 0.0))
    return weights * activations


@method(
    paper="pytorch-grad-cam, GradCAMElementWise; no paper",
    use="only what raises the score, cell by cell",
)
def elementwise_grad_cam(activations: Maps, gradients: Maps) -> Maps:
    """Sum only the channels that raise the score in each cell: a HiResCAM in which channels do not cancel.

    ``sum_k relu(G_kij A_kij)``. It is pytorch-grad-cam's, without a paper.
    """
    return (gradients * activations).relu()


@method(
    paper="pytorch-grad-cam, EigenGradCAM; no paper; after arXiv:2008.00299", use="cleaner maps of one large object"
)
def eigen_grad_cam(activations: Maps, gradients: Maps) -> RawMaps:
    """Show the first principal component of gradients times activations: an Eigen-CAM for the target.

    The component of the cells ``G_ij A_ij`` as points in channel space around their mean. It is pytorch-grad-cam's, without a
    paper. pytorch-grad-cam leaves the sign to its solver; here the map agrees with the mean of G A over channels.
    """
    return principal_component(gradients * activations, facing="mean")


@method(
    paper="Chung and Ying, Applied Sciences 2025, doi:10.3390/app15137562, the definition of Seg-Eigen-CAM",
    use="segmentation",
)
def seg_eigen_cam(activations: Maps, gradients: Maps) -> RawMaps:
    """Show the first principal component of activations times absolute gradients: Eigen-CAM for segmentation.

    The component of the cells ``|G_ij| A_ij`` as points in channel space around their mean; the value with the largest
    magnitude is positive. Positive and negative gradients count alike, so the negated score has the same map.
    """
    return principal_component(gradients.abs() * activations, facing="peak")


@method(
    paper="Hasany et al., CVPR Workshops 2023, the definition of Seg-XRes-CAM",
    use="segmentation: between HiResCAM and Grad-CAM",
)
def seg_xres_cam(activations: Maps, gradients: Maps, *, window: int = 2, pooling: str = "mean") -> Maps:
    """Weigh each cell by the gradients in a window around it: between HiResCAM and Grad-CAM, for segmentation.

    ``sum_k up(pool(G_k))_ij A_kij``: gradients are pooled in adjacent windows of ``window`` cells along each axis, and
    enlarged again by repetition. With window 1 it is HiResCAM; with ``pooling="mean"`` and a window as large as the grid it
    is Grad-CAM. A last window that does not fit pools the cells that it has. The authors' code pools by ``max`` by default,
    and pads the last window with zeros.
    """
    if window < 1:
        raise MethodError(f"the window of seg_xres_cam is {window} cells; give 1 or more")
    if pooling not in _POOLS:
        raise MethodError(f"seg_xres_cam pools by {' or '.join(_POOLS)}, not by {pooling!r}")
    sides = gradients.shape[2:]
    windows = [min(window, side) for side in sides]
    weights = _POOLS[pooling][len(sides)](gradients, windows, ceil_mode=True)
    for axis, (wide, side) in enumerate(zip(windows, sides, strict=True), start=2):
        weights = weights.repeat_interleave(wide, axis).narrow(axis, 0, side)
    return weights * activations


@method(
    paper="Cai, 2025, arXiv:2501.06261, the definition of ShapleyCAM",
    use="heads with curvature, at twice the cost",
    passes="3 backward of the head",
    pools=True,
)
def shapley_cam(activations: Maps, gradients: Maps, curvature: Maps) -> Maps:
    """Weigh each channel by its mean gradient, corrected by the head's curvature: Grad-CAM for curved heads.

    ``w_k = 1/Z sum_ij (G - 1/2 H A)_kij``, with H the score's Hessian by A: the Shapley values of the score's second-order
    expansion, averaged over cells; then ``sum_k w_k A_kij``. With a piecewise linear head it is Grad-CAM. The paper's score,
    ``y_c + log p_c``, is a target here.
    """
    weights = (gradients - 0.5 * curvature).mean(_grid(gradients), keepdim=True)
    return weights * activations


@method(
    paper="Omeiza et al., 2019, arXiv:1908.01224, its weights",
    use="smoother Grad-CAM++, for more passes",
    passes="8 forward and backward",
)
def smooth_grad_cam_pp(
    activations: Maps,
    images: Images,
    gradients_of_images: Query,
    *,
    samples: int = 8,
    spread: float = 0.15,
    seed: int = 0,
) -> Maps:
    """Average the derivatives of Grad-CAM++ over noisy copies of the image: smoother, with a pass for each copy.

    With ``D_n`` the mean of G^n over the copies: ``alpha = D_2 / (2 D_2 + (sum_ab A_ab) D_3)``, ``w_k = sum_ij alpha
    relu(D_1)``, then ``sum_k w_k A_kij``. A is that of the unchanged image; torch-cam takes that of the last noisy copy, in
    the weights and in the map. The noise's standard deviation is ``spread`` times the image's range. Without noise it is
    Grad-CAM++.
    """
    if samples < 1:
        raise MethodError(f"smooth_grad_cam_pp averages over {samples} samples; give 1 or more")
    noise = torch.randn((samples, *images.shape[1:]), generator=torch.Generator().manual_seed(seed))
    deviation = spread * (images.max() - images.min())
    gradients: Tensor = gradients_of_images(samples, lambda rows: images + deviation * noise[rows].to(images))[1]
    # powers of gradients of at most 1: those of small gradients would underflow in single precision
    largest = gradients.abs().max()
    powers = [(gradients / torch.where(largest > 0, largest, 1.0)).pow(n).mean(0, keepdim=True) for n in (1, 2, 3)]
    totals = activations.sum(_grid(activations), keepdim=True)
    alpha = _ratio(powers[1], 2 * powers[1] + totals * largest * powers[2])
    weights = (alpha * largest * powers[0].relu()).sum(_grid(activations), keepdim=True)
    return weights * activations


@method(
    paper="Sattarzadeh et al., ICASSP 2021, arXiv:2102.07805, its path in the layer's maps",
    use="scores that saturate",
    passes="16 forward and backward of the head",
)
def integrated_grad_cam(activations: Maps, gradients_of_maps: Query, *, steps: int = 16) -> Maps:
    """Average the weights of Grad-CAM on a path from zero to the full activations: for scores that saturate.

    ``w_k = 1/Z sum_ij integral_0^1 G_kij(t A) dt``, then ``sum_k w_k (A_kij - 0)``: a path integral by the midpoint rule in
    ``steps`` steps. The path of the paper leads from a baseline image to the image; here it leads through the layer's
    activations, so that only the head runs at each step. With a linear head it is Grad-CAM.
    """
    if steps < 1:
        raise MethodError(f"integrated_grad_cam takes {steps} steps; give 1 or more")
    middles = (torch.arange(steps, dtype=activations.dtype, device=activations.device) + 0.5) / steps
    middles = middles.reshape(-1, *[1] * (activations.ndim - 1))
    gradients: Tensor = gradients_of_maps(steps, lambda rows: middles[rows] * activations)
    weights = gradients.mean((0, *_grid(gradients)))
    return weights.reshape(1, -1, *[1] * (activations.ndim - 2)) * activations


def _grid(maps: Maps) -> tuple[int, ...]:
    """Return the numbers of the grid's axes."""
    return tuple(range(2, maps.ndim))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 where the denominator is 0."""
    is_zero = denominator == 0
    # the numerator times 0, not 0, so that NaN and infinity are kept
    return torch.where(is_zero, numerator * 0, numerator / torch.where(is_zero, 1.0, denominator))
