"""The activation methods against their papers' equations."""

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
import papers.activation  # noqa: F401 - registers the twins
from glowmap.errors import MethodError, ModelError
from glowmap.methods import METHODS
from papers.twins import TWINS
from tiny_models.convolutional import Classifier, FlattenClassifier, images

CLASS_FREE = ["eigen_cam", "kpca_cam", "fem", "lafam"]


class Layer(nn.Module):
    """A layer with maps of one, two or three axes and values of both signs, averaged into a linear head."""

    def __init__(self, axes=2, channels=5):
        super().__init__()
        self.conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes](3, channels, 3, padding=1)
        self.head = nn.Linear(channels, 4)

    def forward(self, images):
        return self.head(torch.tanh(self.conv(images)).flatten(2).mean(2))


class Pooled(Layer):
    """The same without anything between layer, average and head: what the class activation map is made for."""

    def forward(self, images):
        return self.head(self.conv(images).flatten(2).mean(2))


class Given(nn.Module):
    """The layer's maps are the images themselves."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, images):
        return self.layer(images).flatten(2).mean(2)


def signals(*sides, batch=3):
    return torch.randn(batch, 3, *sides, generator=torch.Generator().manual_seed(3)).double()


def maps_of(model, batch):
    return model.conv(batch).detach().numpy()


def map_of(maps, method):
    return glowmap.explain(Given(), maps, target=0, layer="layer", method=method).raw


@pytest.mark.parametrize("name", CLASS_FREE)
@pytest.mark.parametrize("channels", [4, 40])  # fewer and more than the 30 cells: both sides of the Gram matrix
def test_method_is_its_papers_equation(name, channels):
    model, batch = Layer(channels=channels).double().eval(), images(3, 5, 6).double()
    found = glowmap.explain(model, batch, target=1, layer="conv", method=name)
    for A, raw in zip(maps_of(model, batch), found.raw, strict=True):
        np.testing.assert_allclose(raw, TWINS[name](A), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", CLASS_FREE)
@pytest.mark.parametrize("sides", [(31,), (2, 3, 4)])
def test_signals_and_volumes_go_the_same_way(name, sides):
    model, batch = Layer(len(sides)).double().eval(), signals(*sides)
    found = glowmap.explain(model, batch, target=1, layer="conv", method=name)
    assert found.raw.shape[1:] == sides
    for A, raw in zip(maps_of(model, batch), found.raw, strict=True):
        np.testing.assert_allclose(raw.flatten(), TWINS[name](A.reshape(5, -1, 1))[:, 0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("kpca_cam", {"kernel": "rbf"}),
        ("kpca_cam", {"kernel": "rbf", "gamma": 0.7}),
        ("kpca_cam", {"gamma": 0.03}),
        ("fem", {"sigmas": 1.0}),
        ("fem", {"sigmas": 0.0}),
    ],
)
def test_knobs_are_the_equations(name, parameters):
    model, batch = Layer().double().eval(), images(2, 5, 6).double()
    found = glowmap.explain(model, batch, target=1, layer="conv", method=METHODS[name].with_parameters(**parameters))
    usual = glowmap.explain(model, batch, target=1, layer="conv", method=name)
    assert not torch.allclose(found.raw, usual.raw, rtol=1e-2)
    for A, raw in zip(maps_of(model, batch), found.raw, strict=True):
        np.testing.assert_allclose(raw, TWINS[name](A, **parameters), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sides", [(9,), (5, 6), (2, 3, 4)])
def test_cam_is_its_papers_equation(sides):
    model, batch = Pooled(len(sides)).double().eval(), signals(*sides)
    found = glowmap.explain(model, batch, target=2, layer="conv", method="cam")
    for A, raw in zip(maps_of(model, batch), found.raw, strict=True):
        twin = TWINS["cam"](A.reshape(5, -1, 1), model.head.weight[2].tolist())[:, 0]
        np.testing.assert_allclose(raw.flatten(), twin, rtol=1e-9, atol=1e-12)


def test_cam_weighs_the_rows_as_the_score_weighs_the_classes():
    """The slope of log softmax is one minus the probability at its class, and minus the probability at the others."""
    model, batch = Pooled().double().eval(), images(3, 5, 6).double()
    found = glowmap.explain(model, batch, target=lambda logits: logits.log_softmax(1)[:, 1], layer="conv", method="cam")
    shares, rows = model(batch).softmax(1).detach().numpy(), model.head.weight.detach().numpy()
    for A, p, raw in zip(maps_of(model, batch), shares, found.raw, strict=True):
        w = [sum(((c == 1) - p[c]) * rows[c, k] for c in range(4)) for k in range(A.shape[0])]
        np.testing.assert_allclose(raw, TWINS["cam"](A, w), rtol=1e-9, atol=1e-12)


def test_cam_is_grad_cam_and_hires_cam_on_a_pooled_linear_head():
    """Selvaraju et al., section 3.1: Grad-CAM generalises CAM. The constant is the number of cells."""
    model, batch = Classifier().double().eval(), images(2).double()
    cam, grad, hires = (
        glowmap.explain(model, batch, target=2, layer="features", method=name).raw
        for name in ("cam", "grad_cam", "hires_cam")
    )
    torch.testing.assert_close(cam, grad * cam[0].numel(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hires, grad, rtol=1e-10, atol=1e-12)
    assert cam.abs().max() > 0.01


def test_cam_averages_to_the_score():
    model, batch = Pooled().double().eval(), images(2, 5, 6).double()
    found = glowmap.explain(model, batch, target=3, layer="conv", method="cam")
    torch.testing.assert_close(found.raw.mean((1, 2)) + model.head.bias[3], found.scores, rtol=1e-10, atol=0)


@pytest.mark.parametrize("model", [FlattenClassifier(5, 6), Layer()])
def test_cam_refuses_a_head_that_does_more_than_average(model):
    with pytest.raises(MethodError, match="cam needs a model that averages layer 'conv'"):
        glowmap.explain(model.eval(), images(2, 5, 6), target=1, layer="conv", method="cam")


@pytest.mark.parametrize("name", ["eigen_cam", "kpca_cam"])
@pytest.mark.parametrize("sign", [1, -1])
def test_components_face_where_the_layer_is_strong(name, sign):
    """Maps that are high in one corner give a map that is high there; the negative maps give the negative map."""
    weights = torch.tensor([0.9, 0.5, -0.3]).double()
    spot = torch.zeros(5, 6).double()
    spot[0, 0], spot[0, 1] = 3.0, 2.0
    noise = images(1, 5, 6).double() * 0.01
    raw = map_of(sign * (weights[:, None, None] * spot)[None] + noise, name)[0]
    assert raw.flatten().mul(sign).argmax() == 0
    assert raw[0, 0] * sign > 3 * raw[3:].abs().max()


@pytest.mark.parametrize("name", ["eigen_cam", "kpca_cam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_channels_cancel_the_peak_is_positive(name, dtype):
    """As after a layer norm: the mean over channels is zero or rounding, and must not choose the sign."""
    spot = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(5), dtype=dtype)
    spot[:, 2, 3] = 4.0
    half = spot[:, None] * torch.tensor([0.7, -0.2], dtype=dtype)[:, None, None]
    maps = torch.cat([half, -half * 1.0000001], 1)
    for raw in (map_of(maps, name), map_of(-maps, name)):
        assert raw.flatten(1).argmax(1).tolist() == [15] * 3
        assert (raw.amax((1, 2)) >= -raw.amin((1, 2))).all()


@pytest.mark.parametrize("name", ["eigen_cam", "kpca_cam"])
def test_single_precision_keeps_six_digits(name):
    maps = images(2, 14, 14, colours=40) + 100
    wide = map_of(maps.double(), name)
    narrow = map_of(maps, name)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=2e-6 * float(wide.abs().max()))


@pytest.mark.parametrize("parameters", [{}, {"kernel": "rbf"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["eigen_cam", "kpca_cam", "fem"])
def test_flat_maps_say_nothing(name, dtype, parameters):
    """0.1 and its sums are no binary fractions: a mean that is off by a rounding must not become a map."""
    maps = torch.tensor([0.1, -0.7, 1 / 3], dtype=dtype)[None, :, None, None].expand(2, 3, 7, 7).clone()
    maps[1, 0, 2, 2] = 5.0
    raw = map_of(maps, METHODS[name].with_parameters(**parameters) if name == "kpca_cam" else name)
    assert (raw[0] == 0).all()
    assert raw[1].abs().max() > 0.09
    assert raw[1].flatten().argmax() == 16


def test_fem_takes_no_rounding_for_a_deviation():
    maps = torch.full((1, 2, 7, 7), 0.1)
    maps[:, 1] = images(1, 7, 7)[:, 0]
    raw = map_of(maps, METHODS["fem"].with_parameters(sigmas=0.0))[0]
    share = (maps[0, 1] > maps[0, 1].mean()).float().mean()
    torch.testing.assert_close(raw, share * maps[0, 1])


class Broken(nn.Module):
    """A layer whose third channel is not finite in one cell of what is high there."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def forward(self, images):
        return torch.where(images > 90, self.wrong, images)


@pytest.mark.parametrize("name", ["eigen_cam", "kpca_cam"])
@pytest.mark.parametrize("sides", [(1, 2), (5, 6)])  # fewer and more cells than channels
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_is_told_and_is_not_a_solvers_error(name, sides, wrong):
    model, maps = Given(), images(2, *sides)
    model.layer = Broken(wrong)
    maps[1, 2, 0, 0] = 99.0
    with pytest.raises(ModelError, match="NaN or infinity in the activations of layer 'layer' for image 1"):
        glowmap.explain(model, maps, target=0, layer="layer", method=name)


def test_kpca_cam_comes_near_eigen_cam_where_the_kernel_is_straight():
    maps = images(2, 5, 6).double()
    bent, straight = (map_of(maps, METHODS["kpca_cam"].with_parameters(gamma=1e-6)), map_of(maps, "eigen_cam"))
    # tanh(1 + t) rises by 1 - tanh(1)^2 a unit of t, and t is gamma times the inner product
    slope = 1e-6 * (1 - np.tanh(1) ** 2)
    torch.testing.assert_close(bent / slope**0.5, straight, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"kernel": "poly"}, "no kernel 'poly'; there are sigmoid, rbf"),
        ({"gamma": 0.0}, "the gamma of kpca_cam is 0.0; give a positive number"),
        ({"gamma": -1.0}, "the gamma of kpca_cam is -1.0"),
        ({"gamma": float("nan")}, "gamma of kpca_cam is a number or None"),
    ],
)
def test_kpca_cam_refuses_knobs_that_are_no_kernel(parameters, told):
    with pytest.raises(MethodError, match=told):
        map_of(images(1, 5, 6), METHODS["kpca_cam"].with_parameters(**parameters))


def test_kpca_cam_refuses_a_grid_whose_products_would_fill_the_memory():
    with pytest.raises(MethodError, match="4097 cells are more than 4096; name a later layer, or use eigen_cam"):
        map_of(torch.zeros(1, 2, 1, 4097), "kpca_cam")
