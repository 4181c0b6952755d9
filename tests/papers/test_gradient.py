"""The gradient methods, written slowly in their papers' letters: A activations, G = ds/dA, k channels, i and j cells."""

import numpy as np
import pytest
import torch

import glowmap
from cases import FlattenClassifier, images
from papers.twins import TWINS, replicates


@replicates("grad_cam")
def selvaraju_equations_1_and_2_before_the_relu(A, G):
    K, U, V = A.shape
    alpha = [sum(G[k, i, j] for i in range(U) for j in range(V)) / (U * V) for k in range(K)]
    return np.array([[sum(alpha[k] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("hires_cam")
def draelos_and_carin(A, G):
    K, U, V = A.shape
    return np.array([[sum(G[k, i, j] * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


@replicates("layer_cam")
def jiang_before_the_last_relu(A, G):
    K, U, V = A.shape
    return np.array([[sum(max(G[k, i, j], 0.0) * A[k, i, j] for k in range(K)) for j in range(V)] for i in range(U)])


def test_every_method_has_a_twin():
    assert set(TWINS) == set(glowmap.METHODS)


class Curved(FlattenClassifier):
    """A head whose gradient differs from cell to cell and from image to image."""

    def forward(self, images):
        return self.head(torch.tanh(self.conv(images)).flatten(1))


@pytest.mark.parametrize("name", glowmap.METHODS)
def test_method_is_its_papers_equation(name):
    model, batch = Curved().double().eval(), images(3, 8, 8).double()
    found = glowmap.explain(model, batch, target=1, layer="conv", method=name)
    for image, raw in zip(batch, found.raw, strict=True):
        A = model.conv(image[None]).detach().requires_grad_()
        (G,) = torch.autograd.grad(model.head(torch.tanh(A).flatten(1))[0, 1], A)
        np.testing.assert_allclose(raw, TWINS[name](A[0].detach().numpy(), G[0].numpy()), rtol=1e-11, atol=1e-13)


def test_hires_cam_adds_up_to_the_score():
    """Draelos and Carin: under one linear layer the map's sum plus the bias is the logit."""
    model, batch = FlattenClassifier().eval(), images(2, 8, 8)
    found = glowmap.explain(model, batch, target=2, layer="conv", method="hires_cam")
    torch.testing.assert_close(found.raw.sum((1, 2)) + model.head.bias[2], found.scores, atol=1e-5, rtol=0)
