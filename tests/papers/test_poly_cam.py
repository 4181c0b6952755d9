"""Poly-CAM against its paper, over several layers."""

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
import papers.whole_network  # noqa: F401 - registers the twin
from glowmap.errors import MethodError
from papers.twins import TWINS

LAYERS = ["first", "second", "third"]


class Deep(nn.Module):
    """Three layers, each at half the resolution of the one before, and a head that bends."""

    def __init__(self, axes=2):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        sides = ((3, 3, 1), (3, 4, 2), (4, 5, 2))
        layers = [nn.Sequential(conv(into, out, 3, stride, 1), nn.Softplus()) for into, out, stride in sides]
        self.first, self.second, self.third = layers
        self.head = nn.Linear(5, 3)
        self.head.weight.data *= 6

    def forward(self, images):
        self.maps = [self.first(images)]
        self.maps.append(self.second(torch.tanh(self.maps[0])))
        self.maps.append(self.third(torch.tanh(self.maps[1])))
        return torch.sin(self.head(torch.tanh(self.maps[2]).flatten(2).mean(2))).exp()


def explained(model, batch, layers=LAYERS, **parameters):
    return glowmap.explain(
        model, batch, target=1, layer=layers, method=glowmap.METHODS["poly_cam"].with_parameters(**parameters)
    )


@pytest.mark.parametrize("size", [(9,), (8, 10), (4, 5, 6)], ids=["1D", "2D", "3D"])
@pytest.mark.parametrize("weights", ["plus", "minus", "both"])
def test_poly_cam_is_its_papers_recursion(size, weights):
    torch.manual_seed(5)
    model, batch = Deep(len(size)).double().eval(), torch.randn(2, 3, *size).double()
    (found,) = explained(model, batch, weights=weights)
    assert float(found.raw.std()) > 0
    for image, raw in zip(batch, found.raw, strict=True):
        model(image[None])
        layers = [maps[0].detach().numpy() for maps in reversed(model.maps)]

        def score(x):
            with torch.no_grad():
                return float(model(torch.from_numpy(x)[None])[0, 1])

        wanted = TWINS["poly_cam"](layers, image.numpy(), score, weights)
        assert raw.shape == size
        np.testing.assert_allclose(raw, wanted, rtol=1e-8, atol=1e-9 * np.abs(wanted).max())


def test_layers_are_joined_in_the_order_in_which_they_run():
    model, batch = Deep().double().eval(), torch.randn(1, 3, 8, 10).double()
    (found,), (shuffled,) = explained(model, batch), explained(model, batch, ["third", "first", "second"])
    assert torch.equal(found.raw, shuffled.raw)
    assert found.layer == "first, second, third"
    assert found.grid == (8, 10)


def test_an_unknown_kind_of_weights_is_an_error():
    with pytest.raises(MethodError, match="poly_cam weighs by plus, minus, both, not by 'all'"):
        explained(Deep().eval(), torch.randn(1, 3, 8, 10), weights="all")
