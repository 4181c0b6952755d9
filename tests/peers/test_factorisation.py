"""Deep feature factorisation beside scikit-learn's factors, which pytorch-grad-cam uses."""

import pytest
import torch

from glowmap.decomposition import factorised

decomposition = pytest.importorskip("sklearn.decomposition")


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_the_factors_come_as_near_as_scikit_learns(count, seed):
    activations = torch.randn(1, 12, 6, 7, generator=torch.Generator().manual_seed(seed)).double().relu()
    cells = activations[0].flatten(1).T.numpy()
    theirs = decomposition.NMF(count, init="nndsvda", max_iter=2000, tol=1e-6).fit(cells).reconstruction_err_
    maps, vectors = factorised(activations, count)
    ours = (activations[0] - torch.einsum("kij,kc->cij", maps[0], vectors[0])).norm()
    assert float(ours) < 1.02 * theirs
