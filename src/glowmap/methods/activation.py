"""Methods that need a layer's activations alone: one forward pass and no backward pass.

In the equations A is the activations, k a channel, i and j a cell. All but ``cam`` ignore the score: their map is the same for
every target.
"""

from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._method import method
from glowmap.methods._spectral import centred, kernel_component, principal_component
from glowmap.shapes import Maps, RawMaps

ChannelWeights: TypeAlias = Float[Tensor, "batch channel"]
_MOST_CELLS = 4096  # the products of so many fill 128 MiB, and their component takes a quarter of a minute


@method(paper="Zhou et al., CVPR 2016, arXiv:1512.04150, eq. 2", use="models that pool the layer into one linear layer")
def cam(activations: Maps, class_weights: ChannelWeights) -> Maps:
    """Weigh each channel by its weight in the linear head: exact for a layer that is pooled into that head.

    Equation 2: ``sum_k w_k A_kij``, with w the head's row for the class. For another score w is the sum of the rows, each
    weighed by the score's gradient by that class. The map is Grad-CAM's times the number of cells; its mean over the cells,
    plus the bias, is the class score.
    """
    return class_weights.reshape(*class_weights.shape, *[1] * (activations.ndim - 2)) * activations


@method(
    paper="Bany Muhammad and Yeasin, IJCNN 2020, arXiv:2008.00299, the definition of Eigen-CAM", use="one large object"
)
def eigen_cam(activations: Maps) -> RawMaps:
    """Show the first principal component of the activations: what stands out in the layer, with no class and no gradient.

    The cells are points in channel space: ``(A_ij - mean_ij A) . v``, with v the direction in which they vary most. The paper
    projects without subtracting the mean; pytorch-grad-cam subtracts it, and so does this. The sign of a component is
    arbitrary, and pytorch-grad-cam leaves it to the solver. Here the map's inner product with the mean over channels is not
    negative; where that mean is zero, the value with the largest magnitude is positive.
    """
    return principal_component(activations, facing="mean")


@method(
    paper="Karmani et al., 2024, arXiv:2410.00267, the definition of KPCA-CAM",
    use="Eigen-CAM for cells that lie along a curve",
    slow=True,
)
def kpca_cam(activations: Maps, *, kernel: str = "sigmoid", gamma: float | None = None) -> RawMaps:
    """Show the first kernel principal component of the activations: a nonlinear Eigen-CAM, with no class and no gradient.

    With x the cells as points in channel space around their mean, ``kernel`` is ``sigmoid``: tanh(gamma x.y + 1), or ``rbf``:
    exp(-gamma |x - y|^2). The kernel matrix is centred; the map is its leading eigenvector times the root of its eigenvalue,
    as in scikit-learn and pytorch-grad-cam. ``gamma`` is by default one over the number of channels; with a small one the map
    is near Eigen-CAM's. The sign is chosen as in ``eigen_cam``. The time grows with the cube of the number of cells, so name
    one of the last layers. Raises MethodError for more than 4096 cells.
    """
    cells = activations[0, 0].numel()
    if cells > _MOST_CELLS:
        raise MethodError(
            f"kpca_cam compares every cell with every other, and {cells} cells are more than {_MOST_CELLS}; "
            "name a later layer, or use eigen_cam"
        )
    if gamma is not None and not gamma > 0:
        raise MethodError(
            f"the gamma of kpca_cam is {gamma}; give a positive number, or None for one over the channels"
        )
    kernels = {"sigmoid": _sigmoid, "rbf": _rbf}
    if kernel not in kernels:
        raise MethodError(f"kpca_cam has no kernel {kernel!r}; there are {', '.join(kernels)}")
    chosen = 1 / activations.shape[1] if gamma is None else gamma
    return kernel_component(activations, partial(kernels[kernel], gamma=chosen))


@method(
    paper="Fuad et al., IPTA 2020, doi:10.1109/IPTA50016.2020.9286629, the definition of FEM, as in pytorch-grad-cam",
    use="a quick look with no class: rare, strong features",
)
def fem(activations: Maps, *, sigmas: float = 2.0) -> Maps:
    """Weigh each channel by the share of its cells that stand out: rare, strong features, with no class.

    ``sum_k w_k A_kij``, with w_k the share of the cells where A_k is above its mean by more than ``sigmas`` population
    standard deviations. This is the form of pytorch-grad-cam. The paper, and Xplique, sum the masks of those cells, each
    times the mean of its channel. A flat channel has weight 0.
    """
    cells = centred(activations)
    deviation = cells.square().mean(2, keepdim=True).sqrt()
    weights = (cells > sigmas * deviation).to(cells.dtype).mean(2)
    return cam(activations, weights)


@method(
    paper="Karjauv and Albayrak, 2024, arXiv:2407.06059, the definition of LaFAM",
    use="models without classes: self-supervised ones",
)
def lafam(activations: Maps) -> Maps:
    """Average the activations over the channels: where the layer is active, for models without classes.

    ``1/K sum_k A_kij``. The paper's min-max and resizing are the heatmap's steps here.
    """
    return activations / activations.shape[1]


def _sigmoid(points: Tensor, *, gamma: float) -> Tensor:
    return torch.tanh(gamma * (points @ points.mT) + 1)


def _rbf(points: Tensor, *, gamma: float) -> Tensor:
    squares = points.square().sum(1)
    # rounding may make the distance of equal points negative
    distances = (squares[:, None] + squares[None] - 2 * (points @ points.mT)).clamp(min=0)
    return torch.exp(-gamma * distances)
