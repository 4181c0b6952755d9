"""Methods that weigh a layer's maps by the gradients of the score: one forward pass, and one backward pass of the head.

In the equations A is the activations, G = ds/dA the gradients of the score s, k a channel, i and j a cell, Z the number of cells.
"""

from glowmap.methods._method import method
from glowmap.shapes import Maps, RawMaps


@method(paper="Selvaraju et al., ICCV 2017, arXiv:1610.02391, eq. 1 and 2", use="the last layer of a classifier")
def grad_cam(activations: Maps, gradients: Maps) -> RawMaps:
    """Weigh each channel by its mean gradient: the one that everybody knows.

    Equation 1: ``w_k = 1/Z sum_ij G_kij``; equation 2 before its ReLU, which is the heatmap's step here: ``sum_k w_k A_kij``.
    """
    space = tuple(range(2, gradients.ndim))
    weights = gradients.mean(space, keepdim=True)
    return (weights * activations).sum(1)


@method(
    paper="Draelos and Carin, 2020, arXiv:2011.08891, the definition of HiResCAM",
    use="heads that do not pool: segmentation, detection, flattened maps",
)
def hires_cam(activations: Maps, gradients: Maps) -> RawMaps:
    """Weigh each cell of each channel by its own gradient: shows only places that the score uses.

    ``sum_k G_kij A_kij``. After the last convolution, under a single linear layer, the map's sum plus the bias is the score.
    """
    return (gradients * activations).sum(1)


@method(
    paper="Jiang et al., IEEE TIP 2021, doi:10.1109/TIP.2021.3089943, the definition of LayerCAM",
    use="earlier, finer layers",
)
def layer_cam(activations: Maps, gradients: Maps) -> RawMaps:
    """Weigh each cell of each channel by its positive gradient: the choice for earlier, finer layers.

    ``sum_k relu(G_kij) A_kij``, before the paper's last ReLU, which is the heatmap's step here.
    """
    return (gradients.relu() * activations).sum(1)
