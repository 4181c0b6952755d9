"""The gradient methods against their papers' equations."""

import numpy as np
import pytest
import torch

import glowmap
import papers.gradient  # noqa: F401 - registers the twins
from cases import FlattenClassifier, images
from papers.twins import TWINS


class Curved(FlattenClassifier):
    """A head whose gradient differs from cell to cell and from image to image."""

    def forward(self, images):
        return self.head(torch.tanh(self.conv(images)).flatten(1))


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "layer_cam"])
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
