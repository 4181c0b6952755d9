"""The gradient methods against their papers' equations."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
import papers.gradient  # noqa: F401 - registers the twins
from glowmap.errors import MethodError
from glowmap.methods import METHODS
from papers.twins import TWINS
from tiny_models.convolutional import FlattenClassifier, images

OF_MAPS_AND_GRADIENTS = [
    "grad_cam",
    "hires_cam",
    "layer_cam",
    "grad_cam_pp",
    "xgrad_cam",
    "elementwise_grad_cam",
    "eigen_grad_cam",
    "seg_eigen_cam",
    "seg_xres_cam",
]
EVERY = [*OF_MAPS_AND_GRADIENTS, "shapley_cam", "smooth_grad_cam_pp", "integrated_grad_cam"]


class Curved(nn.Module):
    """A head that mixes all cells and bends twice: gradients differ by cell and image, and the Hessian is full.

    The layer is a convolution over one, two or three axes, with values of both signs.
    """

    def __init__(self, *sides, channels=5):
        super().__init__()
        self.conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(sides)](3, channels, 3, padding=1)
        self.hidden = nn.Linear(channels * math.prod(sides), 6)
        self.last = nn.Linear(6, 3)

    def head(self, maps):
        return self.last(torch.tanh(2 * self.hidden(torch.tanh(maps).flatten(1))))

    def forward(self, images):
        return self.head(self.conv(images))


class Pooled(nn.Module):
    """A layer with values of both signs, averaged and linear from there."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        return self.head(self.conv(images).mean((2, 3)))


class Given(nn.Module):
    """Maps and gradients as they are wished for: the images are the maps, and the score is their product with the weights."""

    def __init__(self, gradients):
        super().__init__()
        self.layer = nn.Identity()
        self.gradients = gradients

    def forward(self, images):
        return (self.layer(images) * self.gradients).flatten(1).sum(1, keepdim=True)


def map_of(maps, gradients, method):
    return glowmap.explain(Given(gradients), maps, target=0, layer="layer", method=method).raw


def curved(*sides, channels=5, batch=3):
    picture = torch.randn(batch, 3, *sides, generator=torch.Generator().manual_seed(3)).double()
    return Curved(*sides, channels=channels).double().eval(), picture


def explained(model, batch, name, **parameters):
    return glowmap.explain(model, batch, target=1, layer="conv", method=METHODS[name].with_parameters(**parameters)).raw


def gradient_at(model, A, like):
    """The gradient at any maps, in NumPy; ``like`` has the maps' own axes."""
    asked = torch.tensor(A).reshape(1, *like.shape).requires_grad_()
    (G,) = torch.autograd.grad(model.head(asked)[0, 1], asked)
    return G.numpy().reshape(np.shape(A))


def noisy_gradients(model, image, samples=8, spread=0.15, seed=0):
    draws = torch.randn((samples, *image.shape), generator=torch.Generator().manual_seed(seed))
    deviation = spread * float(image.max() - image.min())
    maps = [model.conv((image + deviation * draw)[None])[0].detach() for draw in draws.double()]
    return [gradient_at(model, one.numpy(), one) for one in maps]


def twin(name, model, image, **parameters):
    """Ask the twin about one image; but for windows the places of cells do not matter, so that any axes are columns to it."""
    maps = model.conv(image[None])[0].detach()
    flat = (lambda a: a) if name == "seg_xres_cam" else (lambda a: a.reshape(len(a), -1, 1))
    A, G = flat(maps.numpy()), flat(gradient_at(model, maps.numpy(), maps))
    if name == "shapley_cam":
        hessian = torch.autograd.functional.hessian(
            lambda a: model.head(a.reshape(1, *maps.shape))[0, 1], maps.flatten()
        )
        evidence = (A, G, hessian.numpy())
    elif name == "smooth_grad_cam_pp":
        return TWINS[name](A, [flat(one) for one in noisy_gradients(model, image, **parameters)]).reshape(
            maps.shape[1:]
        )
    elif name == "integrated_grad_cam":
        evidence = (A, lambda a: gradient_at(model, a, maps))
    else:
        evidence = (A, G)
    return TWINS[name](*evidence, **parameters).reshape(maps.shape[1:])


@pytest.mark.parametrize("sides", [(11,), (4, 5), (2, 3, 2)])
@pytest.mark.parametrize("name", EVERY)
def test_method_is_its_papers_equation(name, sides):
    model, batch = curved(*sides)
    raw = explained(model, batch, name)
    for image, found in zip(batch, raw, strict=True):
        np.testing.assert_allclose(found, twin(name, model, image), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["eigen_grad_cam", "seg_eigen_cam"])
def test_components_are_the_same_from_the_other_side(name):
    """With more channels than cells the other Gram matrix is solved."""
    model, batch = curved(3, 4, channels=20)
    for image, found in zip(batch, explained(model, batch, name), strict=True):
        np.testing.assert_allclose(found, twin(name, model, image), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("seg_xres_cam", {"window": 3}),
        ("seg_xres_cam", {"pooling": "max"}),
        ("seg_xres_cam", {"pooling": "max", "window": 4}),
        ("smooth_grad_cam_pp", {"samples": 3}),
        ("smooth_grad_cam_pp", {"spread": 0.5}),
        ("smooth_grad_cam_pp", {"seed": 7}),
        ("integrated_grad_cam", {"steps": 3}),
    ],
)
def test_knobs_are_the_equations(name, parameters):
    model, batch = curved(5, 7)
    raw = explained(model, batch, name, **parameters)
    assert not torch.allclose(raw, explained(model, batch, name), rtol=1e-4)
    for image, found in zip(batch, raw, strict=True):
        np.testing.assert_allclose(found, twin(name, model, image, **parameters), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_windows_of_a_volume_are_cubes(pooling):
    model, batch = curved(3, 5, 4)
    raw = explained(model, batch, "seg_xres_cam", window=2, pooling=pooling)
    for image, found in zip(batch, raw, strict=True):
        twins = twin("seg_xres_cam", model, image, window=2, pooling=pooling)
        np.testing.assert_allclose(found, twins, rtol=1e-9, atol=1e-11)


def test_hires_cam_adds_up_to_the_score():
    """Draelos and Carin: under one linear layer the map's sum plus the bias is the logit."""
    model, batch = FlattenClassifier().eval(), images(2, 8, 8)
    found = glowmap.explain(model, batch, target=2, layer="conv", method="hires_cam")
    torch.testing.assert_close(found.raw.sum((1, 2)) + model.head.bias[2], found.scores, atol=1e-5, rtol=0)


# Grad-CAM++


def test_grad_cam_pp_is_not_what_torch_cam_computes():
    """It never divides (its weights are sum G^2 relu(G)); and its intended denominator sums G^3 A, where equation 19 sums A."""
    model, batch = curved(4, 5)
    for image, found in zip(batch, explained(model, batch, "grad_cam_pp"), strict=True):
        maps = model.conv(image[None])[0].detach()
        A, G = maps.numpy(), gradient_at(model, maps.numpy(), maps)
        undivided = np.einsum("kij,kij,k...->...", G**2, np.maximum(G, 0), A)
        joint = G**2 / (2 * G**2 + (G**3 * A).sum((1, 2), keepdims=True))
        jointly = np.einsum("kij,kij,k...->...", joint, np.maximum(G, 0), A)
        for wrong in (undivided, jointly):
            assert abs(found.numpy() - wrong).max() > 0.05 * abs(found.numpy()).max()


def test_grad_cam_pp_by_hand():
    """One channel, sum of A 4, one gradient of 3 and one of -1: alpha is 9 / (18 + 4 * 27) = 1/14, the weight 3/14."""
    maps, gradients = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]]]]), torch.tensor([[[[3.0, -1.0], [0.0, 0.0]]]])
    torch.testing.assert_close(map_of(maps, gradients, "grad_cam_pp"), 3 / 14 * maps[:, 0])


@pytest.mark.parametrize("name", ["grad_cam_pp", "smooth_grad_cam_pp"])
@pytest.mark.parametrize("size", [1e-4, 1e-12, 1e-25])
def test_small_gradients_do_not_vanish_in_single_precision(name, size):
    """Where G is small alpha is one half, so that the weight is half the sum of the positive gradients."""
    maps, gradients = images(2, 4, 5).abs(), images(2, 4, 5, seed=2)
    raw = map_of(maps, gradients[:1] * size, name)
    expected = (gradients[:1].relu().sum((2, 3), keepdim=True) / 2 * maps).sum(1)
    torch.testing.assert_close(raw / size, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("name", ["grad_cam_pp", "smooth_grad_cam_pp"])
def test_without_gradient_there_is_no_weight(name):
    maps, gradients = images(2, 4, 5), torch.zeros(1, 3, 4, 5)
    assert (map_of(maps, gradients, name) == 0).all()
    gradients[:, 1, 2, 2] = 0.5
    total = maps[:, 1].sum((1, 2))
    weight = 0.5 / (2 + 0.5 * total)
    torch.testing.assert_close(map_of(maps, gradients, name), weight[:, None, None] * maps[:, 1])


@pytest.mark.parametrize("name", ["grad_cam_pp", "smooth_grad_cam_pp"])
def test_a_denominator_of_zero_gives_no_weight(name):
    """A channel that sums to -4 under a gradient of one half: 2 - 4 / 2."""
    maps = torch.tensor([[[[-1.0, -3.0]], [[2.0, 4.0]]]])
    gradients = torch.tensor([[[[0.5, 0.0]], [[0.5, 0.0]]]])
    torch.testing.assert_close(map_of(maps, gradients, name), 0.5 / (2 + 3) * maps[:, 1])


def test_smooth_grad_cam_pp_without_noise_is_grad_cam_pp():
    model, batch = curved(4, 5)
    smooth = explained(model, batch, "smooth_grad_cam_pp", spread=0.0, samples=3)
    torch.testing.assert_close(smooth, explained(model, batch, "grad_cam_pp"), rtol=1e-10, atol=1e-12)


def test_smooth_grad_cam_pp_repeats_itself_and_leaves_the_generator_alone():
    model, batch = curved(4, 5)
    before = torch.get_rng_state()
    first, second, other = (explained(model, batch, "smooth_grad_cam_pp", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, rtol=1e-3)


def test_smooth_grad_cam_pp_weighs_the_images_own_maps():
    """torch-cam weighs those of the last noisy copy: under a constant gradient, where noise changes nothing else, it shows."""
    maps, gradients = images(2, 4, 5), images(1, 4, 5, seed=2)
    smooth = map_of(maps, gradients, METHODS["smooth_grad_cam_pp"].with_parameters(spread=1.0))
    torch.testing.assert_close(smooth, map_of(maps, gradients, "grad_cam_pp"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["smooth_grad_cam_pp", "integrated_grad_cam"])
def test_how_many_questions_fit_at_once_changes_nothing(name, monkeypatch):
    model, batch = curved(4, 5)
    whole = explained(model, batch, name)
    monkeypatch.setattr("glowmap.evidence.rescoring.chunk_size", lambda *_: 3)
    torch.testing.assert_close(explained(model, batch, name), whole, rtol=1e-12, atol=1e-14)


# XGrad-CAM


def test_xgrad_cam_adds_up_to_what_hires_cam_does():
    """Fu et al., conservation: the map's sum is the sum of gradients times activations."""
    model, batch = curved(4, 5)
    sums = [explained(model, batch, name).sum((1, 2)) for name in ("xgrad_cam", "hires_cam")]
    torch.testing.assert_close(*sums, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("maps", [[[2.0, -2.0]], [[0.0, 0.0]]])
def test_xgrad_cam_gives_a_channel_that_sums_to_zero_no_weight(maps):
    both = torch.tensor([[maps, [[1.0, 3.0]]]])
    raw = map_of(both, torch.tensor([[[[5.0, 1.0]], [[2.0, 6.0]]]]), "xgrad_cam")
    torch.testing.assert_close(raw, (1 * 2 + 3 * 6) / 4 * both[:, 1])


def test_xgrad_cam_gives_a_channel_that_sums_to_rounding_no_weight():
    """After an instance norm every channel sums to zero, but for rounding, over which the peers divide."""
    maps = images(2, 7, 7, colours=4)
    maps[:, 1:] = nn.InstanceNorm2d(3)(maps[:, 1:])
    assert (maps[:, 1:].sum((2, 3)) != 0).any()
    gradients = images(1, 7, 7, colours=4, seed=2)
    weight = (gradients * maps)[:, 0].sum((1, 2)) / maps[:, 0].sum((1, 2))
    torch.testing.assert_close(map_of(maps, gradients, "xgrad_cam"), weight[:, None, None] * maps[:, 0])


@pytest.mark.parametrize("name", ["xgrad_cam", "integrated_grad_cam", "shapley_cam"])
def test_on_a_pooled_linear_head_they_are_grad_cam(name):
    model, batch = Pooled().double().eval(), images(2, 5, 6).double()
    raw = explained(model, batch, name)
    torch.testing.assert_close(raw, explained(model, batch, "grad_cam"), rtol=1e-9, atol=1e-12)
    assert raw.abs().max() > 1e-3


# ShapleyCAM, Integrated Grad-CAM


@pytest.mark.parametrize("name", ["integrated_grad_cam", "shapley_cam"])
def test_with_a_linear_head_they_are_grad_cam(name):
    model, batch = FlattenClassifier(5, 6).double().eval(), images(2, 5, 6).double()
    raw = explained(model, batch, name)
    torch.testing.assert_close(raw, explained(model, batch, "grad_cam"), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(raw, explained(model, batch, "xgrad_cam"), rtol=0.1)


class Square(nn.Module):
    """A score of squares, of which everything is known: G is 2 A, H is 2, and the way from zero is straight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Identity()

    def forward(self, images):
        return (self.conv(images) ** 2).flatten(2).sum(2)


@pytest.mark.parametrize("name", ["integrated_grad_cam", "shapley_cam"])
@pytest.mark.parametrize("parameters", [{}, {"steps": 1}])
def test_of_a_square_they_are_half_of_grad_cam(name, parameters):
    """2 A - 1/2 2 A = A, and the mean of 2 t A is A, by the midpoint rule in any number of steps."""
    batch = images(2, 4, 5).double()
    raw = explained(Square(), batch, name, **(parameters if name == "integrated_grad_cam" else {}))
    torch.testing.assert_close(raw, explained(Square(), batch, "grad_cam") / 2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(raw, batch[:, 1].mean((1, 2), keepdim=True) * batch[:, 1], rtol=1e-10, atol=1e-12)


# Windows between HiResCAM and Grad-CAM; what a head does not see


@pytest.mark.parametrize(("window", "name"), [(1, "hires_cam"), (6, "grad_cam"), (1000, "grad_cam")])
def test_seg_xres_cam_lies_between_hires_cam_and_grad_cam(window, name):
    model, batch = curved(4, 6)
    raw = explained(model, batch, "seg_xres_cam", window=window)
    torch.testing.assert_close(raw, explained(model, batch, name), rtol=1e-12, atol=1e-13)


def test_a_last_window_averages_what_it_has():
    maps, gradients = torch.ones(1, 1, 1, 5), torch.tensor([[[[1.0, 3.0, 5.0, 7.0, 10.0]]]])
    assert map_of(maps, gradients, "seg_xres_cam").tolist() == [[[2.0, 2.0, 6.0, 6.0, 10.0]]]
    largest = map_of(maps, -gradients, METHODS["seg_xres_cam"].with_parameters(pooling="max", window=3))
    assert largest.tolist() == [[[-1.0, -1.0, -1.0, -7.0, -7.0]]]


@pytest.mark.parametrize("name", ["hires_cam", "layer_cam", "elementwise_grad_cam"])
def test_where_the_head_is_blind_there_is_no_heat(name):
    """Grad-CAM's mean over cells puts heat on the half that the head does not see."""
    model, batch = FlattenClassifier(8, 6).double().eval(), images(2, 8, 6).double()
    with torch.no_grad():
        model.head.weight.view(3, 5, 8, 6)[:, :, 4:] = 0
    raw = explained(model, batch, name)
    assert (raw[:, 4:] == 0).all()
    assert (raw[:, :4] != 0).double().mean() > 0.9
    assert explained(model, batch, "grad_cam")[:, 4:].relu().sum() > 0.01


def test_elementwise_grad_cam_lets_no_channel_cancel():
    maps = torch.tensor([[[[2.0, 1.0]], [[-3.0, 1.0]]]])
    gradients = torch.tensor([[[[1.0, -1.0]], [[1.0, 4.0]]]])
    assert map_of(maps, gradients, "elementwise_grad_cam").tolist() == [[[2.0, 4.0]]]
    assert map_of(maps, gradients, "hires_cam").tolist() == [[[-1.0, 3.0]]]


# The sign of components


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_components_of_gradients_face_as_they_are_said_to(sign):
    """A product that is high (or low) in one corner; |G| A is high there whenever A is."""
    spot = torch.full((1, 2, 4, 5), 0.01) * images(1, 4, 5)[:, :2]
    spot[:, :, 0, 0] = 2.0
    gradients = sign * torch.tensor([0.5, 1.5])[None, :, None, None].expand(1, 2, 4, 5)
    by_mean, by_peak = (map_of(spot, gradients, name)[0] for name in ("eigen_grad_cam", "seg_eigen_cam"))
    torch.testing.assert_close(by_mean, sign * by_peak)
    assert by_peak[0, 0] == by_peak.abs().max()
    assert by_peak[0, 0] > 3


@pytest.mark.parametrize("name", ["eigen_grad_cam", "seg_eigen_cam"])
def test_flat_products_say_nothing(name):
    maps, gradients = torch.full((2, 3, 7, 7), 0.1), torch.full((1, 3, 7, 7), 0.3)
    maps[1, 0, 1, 2] = 2.0
    raw = map_of(maps, gradients, name)
    assert (raw[0] == 0).all()
    assert raw[1].flatten().argmax() == 9


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("seg_xres_cam", {"window": 0}, "the window of seg_xres_cam is 0 cells; give 1 or more"),
        ("seg_xres_cam", {"pooling": "median"}, "seg_xres_cam pools by mean or max, not by 'median'"),
        ("smooth_grad_cam_pp", {"samples": 0}, "averages over 0 samples; give 1 or more"),
        ("integrated_grad_cam", {"steps": 0}, "integrated_grad_cam takes 0 steps; give 1 or more"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(name, parameters, told):
    model, batch = curved(4, 5)
    with pytest.raises(MethodError, match=told):
        explained(model, batch, name, **parameters)
