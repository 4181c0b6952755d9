"""Against Captum: the same maps, up to rounding, and where the two differ, the paper's equation between them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import glowmap
import papers.perturbation
import papers.whole_network  # noqa: F401 - they register the twins
from glowmap.methods import METHODS
from papers.twins import TWINS
from peers.nets import TARGETS, bending, pictures, resnet

peer = pytest.importorskip("captum.attr", reason="make test-peers installs it")
pytestmark = pytest.mark.filterwarnings("ignore")

QUESTIONS = torch.tensor(TARGETS)
SIDES = pytest.mark.parametrize("sides", [(15, 18), (40,), (6, 7, 8)], ids=["2D", "1D", "3D"])
LAYERS = pytest.mark.parametrize("layer", ["signed", "relu1", "relu2", "relu3"])


def explained(model, batch, name, layer=None, **parameters):
    method = METHODS[name].with_parameters(**parameters)
    return glowmap.explain(model, batch, target=QUESTIONS, layer=layer, method=method)


def same(raw, theirs):
    """Assert equality up to the rounding of sums in single precision, measured by each map's largest value."""
    theirs = theirs.detach()
    for one, other in zip(raw, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=0, atol=float(2e-6 * other.abs().max()))


@SIDES
@LAYERS
def test_grad_cam_is_the_same(sides, layer):
    model, batch = bending(*sides), pictures(*sides)
    theirs = peer.LayerGradCam(model, model.get_submodule(layer)).attribute(batch, target=QUESTIONS)
    same(explained(model, batch, "grad_cam", layer).raw, theirs[:, 0])


@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
def test_grad_cam_of_a_resnet_is_the_same(layer):
    model, batch = resnet(), pictures(64, 64)
    theirs = peer.LayerGradCam(model, model.get_submodule(layer)).attribute(batch, target=QUESTIONS)
    same(explained(model, batch, "grad_cam", layer).raw, theirs[:, 0])


@LAYERS
def test_the_enlarged_heatmap_is_the_same(layer):
    model, batch = bending(15, 18), pictures(15, 18)
    method = peer.LayerGradCam(model, model.get_submodule(layer))
    positive = method.attribute(batch, target=QUESTIONS, relu_attributions=True)
    large = peer.LayerAttribution.interpolate(positive, (15, 18), "bilinear")[:, 0].detach()
    low, high = (side(large, (1, 2), keepdim=True) for side in (torch.amin, torch.amax))
    stretched = (large - low) / torch.where(high > low, high - low, 1)
    assert stretched.amax((1, 2)).median() > 0.999
    torch.testing.assert_close(explained(model, batch, "grad_cam", layer).heatmap, stretched, rtol=0, atol=2e-6)


@SIDES
@LAYERS
def test_hires_cam_is_gradient_times_activation(sides, layer):
    model, batch = bending(*sides), pictures(*sides)
    theirs = peer.LayerGradientXActivation(model, model.get_submodule(layer)).attribute(batch, target=QUESTIONS)
    same(explained(model, batch, "hires_cam", layer).raw, theirs.sum(1))


@SIDES
@LAYERS
def test_ablation_cam_is_feature_ablation_of_channels_times_the_maps(sides, layer):
    """One feature a channel, set to 0: also where maps have values of both signs."""
    model, batch = bending(*sides).double(), pictures(*sides).double()
    kept = []
    with model.get_submodule(layer).register_forward_hook(lambda *seen: kept.append(seen[2].detach())):
        model(batch)
    (maps,) = kept
    channels = torch.arange(maps.shape[1]).reshape(1, -1, *[1] * len(sides)).expand(1, *maps.shape[1:])
    method = peer.LayerFeatureAblation(model, model.get_submodule(layer))
    falls = method.attribute(batch, layer_baselines=0.0, target=QUESTIONS, layer_mask=channels)
    same(explained(model, batch, "ablation_cam", layer).raw, (falls * maps).sum(1))


@SIDES
def test_the_input_gradient_is_saliency(sides):
    """Of which the largest colour is taken."""
    model, batch = bending(*sides), pictures(*sides)
    theirs = peer.Saliency(model).attribute(batch, target=QUESTIONS)
    same(explained(model, batch, "input_gradient").raw, theirs.amax(1))


@SIDES
@pytest.mark.parametrize("baseline", [0.0, -1.5])
def test_integrated_gradients_are_the_same(sides, baseline):
    """By the same rule, in as many steps."""
    model, batch = bending(*sides), pictures(*sides)
    theirs = peer.IntegratedGradients(model).attribute(batch, baselines=baseline, target=QUESTIONS, n_steps=20)
    same(explained(model, batch, "integrated_gradients", baseline=baseline, steps=20).raw, theirs.sum(1).float())


@SIDES
def test_guided_backprop_is_the_same(sides):
    model, batch = bending(*sides), pictures(*sides)
    theirs = peer.GuidedBackprop(model).attribute(batch, target=QUESTIONS)
    same(explained(model, batch, "guided_backprop").raw, theirs.sum(1))


@SIDES
@pytest.mark.parametrize("layer", ["signed", "relu1"])
def test_guided_grad_cam_is_the_same_at_the_images_resolution(sides, layer):
    model, batch = bending(*sides), pictures(*sides)
    theirs = peer.GuidedGradCam(model, model.get_submodule(layer)).attribute(batch, target=QUESTIONS).sum(1)
    raw = explained(model, batch, "guided_grad_cam", layer).raw
    assert raw.flatten(1).abs().amax(1).gt(0).sum() >= 2  # the Grad-CAM of one image is all negative
    torch.testing.assert_close(raw, theirs.detach(), rtol=0, atol=float(2e-6 * raw.abs().max()))


def test_guided_grad_cam_enlarges_bilinearly_as_the_paper_does():
    """And not by repeating the nearest cell."""
    model, batch = bending(15, 18), pictures(15, 18)
    raw = explained(model, batch, "guided_grad_cam", "relu3").raw
    guided = peer.GuidedBackprop(model).attribute(batch, target=QUESTIONS)
    cam = peer.LayerGradCam(model, model.relu3).attribute(batch, target=QUESTIONS, relu_attributions=True)
    smooth, blocks = (
        (guided * peer.LayerAttribution.interpolate(cam, (15, 18), how)).sum(1).detach()
        for how in ("bilinear", "nearest")
    )
    theirs = peer.GuidedGradCam(model, model.relu3).attribute(batch, target=QUESTIONS).sum(1).detach()
    size = float(smooth.abs().max())
    torch.testing.assert_close(raw, smooth, rtol=0, atol=2e-6 * size)
    torch.testing.assert_close(theirs, blocks, rtol=0, atol=2e-6 * size)
    assert (smooth - blocks).abs().max() > 0.05 * size


@pytest.mark.parametrize(
    ("sides", "window", "stride"), [((15, 18), 3, 3), ((15, 18), 6, 3), ((22,), 4, 2), ((4, 6, 8), 2, 2)]
)
def test_occlusion_is_the_same_where_windows_fit(sides, window, stride):
    model, batch = bending(*sides), pictures(*sides)
    theirs = peer.Occlusion(model).attribute(
        batch, (3, *[window] * len(sides)), (3, *[stride] * len(sides)), baselines=0.3, target=QUESTIONS
    )
    raw = explained(model, batch, "occlusion", window=window, stride=stride, value=0.3).raw
    # a drop is a difference of scores
    torch.testing.assert_close(raw, theirs[:, 0].detach(), rtol=0, atol=1e-6)
    assert raw.abs().max() > 0.02


def test_occlusion_hides_with_whole_windows_at_the_edge_too():
    """The peer's last window hangs over the edge, and so hides less than the others."""
    model, batch = bending(40).double(), pictures(40).double()
    raw = explained(model, batch, "occlusion", window=7, stride=7, value=0.0).raw
    theirs = peer.Occlusion(model).attribute(batch, (3, 7), (3, 7), baselines=0.0, target=QUESTIONS)[:, 0].double()
    # the peer keeps scores in single precision
    torch.testing.assert_close(raw[:, :33], theirs[:, :33], rtol=0, atol=1e-6)
    for image, target in enumerate(TARGETS):

        def score(x, target=target):
            with torch.no_grad():
                return model(torch.from_numpy(x)[None])[0, target].item()

        twin = torch.from_numpy(TWINS["occlusion"](batch[image].numpy(), score, 7, 7, 0.0))
        torch.testing.assert_close(raw[image], twin, rtol=1e-9, atol=1e-12)
        assert (theirs[image] - twin).abs().max() > 0.02 * twin.abs().max()


class Layered(nn.Module):
    """Two linear layers on the flattened image, with a ReLU between them that is a function or a module."""

    def __init__(self, relu):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3 * 4 * 5, 12)
        self.second = nn.Linear(12, 8)
        self.last = nn.Linear(8, 4)
        self.relus = nn.ModuleList([nn.ReLU(), nn.ReLU()]) if relu is None else [relu, relu]

    def forward(self, images):
        one, two = self.relus
        return self.last(two(self.second(one(self.first(images.flatten(1))))))


def test_guided_backprop_through_a_functional_relu_is_the_plain_gradient():
    """The peer hooks modules, so that what it calls guided backprop depends on how a ReLU is written."""
    modules, functions, batch = Layered(None).double(), Layered(F.relu).double(), pictures(4, 5).double()
    theirs, unguided = (peer.GuidedBackprop(model).attribute(batch, target=QUESTIONS) for model in (modules, functions))
    plain = peer.Saliency(functions).attribute(batch, target=QUESTIONS, abs=False)
    torch.testing.assert_close(unguided, plain)
    for model in (modules, functions):
        raw = explained(model, batch, "guided_backprop").raw
        torch.testing.assert_close(raw, theirs.sum(1), rtol=1e-9, atol=1e-12)
        for image, target in enumerate(TARGETS):
            layers = [
                (layer.weight.detach().numpy(), layer.bias.detach().numpy(), None)
                for layer in (model.first, model.second, model.last)
            ]
            steps = [layers[0], "relu", layers[1], "relu", layers[2]]
            twin = torch.from_numpy(TWINS["guided_backprop"](steps, batch[image].numpy(), target))
            torch.testing.assert_close(raw[image], twin, rtol=1e-9, atol=1e-12)
            assert (unguided.sum(1)[image] - twin).abs().max() > 0.2 * twin.abs().max()
