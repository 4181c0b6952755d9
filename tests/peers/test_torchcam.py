"""Against TorchCAM: the same maps, and where the two differ, the paper's equation between them."""

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
import papers.gradient
import papers.perturbation  # noqa: F401 - they register the twins
from glowmap.errors import TargetError
from glowmap.methods import METHODS
from papers.perturbation import mask, seen_through, softmax, weighed
from papers.twins import TWINS
from peers.nets import TARGETS, Straight, bending, evidence, far, pictures, resnet, speaks

peer = pytest.importorskip("torchcam.methods", reason="make test-peers installs it")
pytestmark = pytest.mark.filterwarnings("ignore")

PEERS = {
    "grad_cam": peer.GradCAM,
    "layer_cam": peer.LayerCAM,
    "xgrad_cam": peer.XGradCAM,
    "score_cam": peer.ScoreCAM,
}
CLOSE = 1e-6


def peers_heatmap(kind, model, batch, layer, **how):
    with kind(model, layer, **how) as extractor:
        scores = model(batch)
        return extractor(TARGETS, scores)[0].detach()


def as_the_peer_shows(raw, rectified=True):
    """Take a raw map through the peer's ReLU and its scaling, with 1e-8 on the maximum; it does not resize."""
    maps, space = (raw.relu() if rectified else raw), tuple(range(1, raw.ndim))
    maps = maps - maps.amin(space, keepdim=True)
    return maps / (maps.amax(space, keepdim=True) + 1e-8)


def explained(model, batch, name, layer, **parameters):
    method = METHODS[name].with_parameters(**parameters)
    return glowmap.explain(model, batch, target=torch.tensor(TARGETS), layer=layer, method=method)


def score_of(model, target):
    """The score of an image that is a NumPy array."""

    def score(image):
        with torch.no_grad():
            return model(torch.from_numpy(image)[None])[0, target].item()

    return score


# The same maps


@pytest.mark.parametrize("layer", ["signed", "relu1", "relu2", "relu3"])
@pytest.mark.parametrize(
    ("name", "sides"),
    # the peer has no Score-CAM of signals: see T4 below
    [
        (name, sides)
        for name in PEERS
        for sides in [(15, 18), (48,), (6, 7, 8)]
        if (name, sides) != ("score_cam", (48,))
    ],
)
def test_maps_are_the_same(name, sides, layer):
    model, batch = bending(*sides), pictures(*sides)
    theirs = peers_heatmap(PEERS[name], model, batch, layer)
    assert speaks(theirs)
    assert far(as_the_peer_shows(explained(model, batch, name, layer).raw), theirs) < CLOSE


@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "xgrad_cam"])
def test_maps_of_a_resnet_are_the_same(name, layer):
    model, batch = resnet(), pictures(64, 64)
    theirs = peers_heatmap(PEERS[name], model, batch, layer)
    assert speaks(theirs)
    assert far(as_the_peer_shows(explained(model, batch, name, layer).raw), theirs) < CLOSE


def test_cam_is_the_same():
    """Of which the peer takes no ReLU."""
    model, batch = resnet(), pictures(64, 64)
    theirs = peers_heatmap(peer.CAM, model, batch, "layer4", fc_layer="fc")
    assert speaks(theirs)
    assert far(as_the_peer_shows(explained(model, batch, "cam", "layer4").raw, rectified=False), theirs) < CLOSE


def test_ss_cam_is_the_same_but_for_its_noise():
    """The peer draws other noise for each channel, from the global generator; so here without any."""
    model, batch = bending(15, 18), pictures(15, 18)
    theirs = peers_heatmap(peer.SSCAM, model, batch, "relu2", num_samples=2, std=1e-20)
    assert speaks(theirs)
    assert far(as_the_peer_shows(explained(model, batch, "ss_cam", "relu2", samples=2, spread=0.0).raw), theirs) < CLOSE


def test_layers_multiplied_are_the_same():
    """At the image's resolution; elsewhere the peer does not scale a layer again that was enlarged."""
    model, batch, layers = bending(15, 18, stride=1), pictures(15, 18), ["relu1", "relu2", "relu3"]
    theirs = peers_heatmap(peer.RefineCAM, model, batch, layers, base_method=peer.LayerCAM)
    found = glowmap.explain(model, batch, target=torch.tensor(TARGETS), layer=layers, method="layer_cam")
    assert speaks(theirs)
    # the peer's 1e-8 is large beside products of three small numbers, and counts three times
    assert far(found.fused("product")[0].heatmap, theirs) < 3 * CLOSE


def test_a_question_of_ones_own_is_the_same():
    """A class against the mean of two others: the peer's FinerCAM."""
    model, batch = bending(15, 18), pictures(15, 18)
    with peer.FinerCAM(model, "relu3", gamma=0.6) as extractor:
        theirs = extractor(2, model(batch), comparison_idx=[0, 3])[0].detach()

    def against_others(logits):
        return logits[:, 2] - 0.6 * logits[:, [0, 3]].mean(1)

    found = glowmap.explain(model, batch, target=against_others, layer="relu3", method="grad_cam")
    assert speaks(theirs)
    assert far(as_the_peer_shows(found.raw), theirs) < CLOSE


# Where the peer differs from the paper


@pytest.mark.parametrize("layer", ["relu1", "relu2", "relu3"])
def test_t1_grad_cam_pp_never_divides(layer):
    """It divides a copy, so that its weights are the sum of G^2 relu(G)."""
    model, batch = bending(15, 18, steep=10.0).double(), pictures(15, 18).double()
    theirs = peers_heatmap(peer.GradCAMpp, model, batch, layer)
    raw = explained(model, batch, "grad_cam_pp", layer).raw
    for image, target in enumerate(TARGETS):
        A, G = evidence(model, layer, batch[image], target)
        twin = torch.from_numpy(TWINS["grad_cam_pp"](A, G))
        torch.testing.assert_close(raw[image], twin, rtol=1e-9, atol=1e-12)
        undivided = torch.from_numpy(weighed((G**2 * np.maximum(G, 0)).sum((1, 2)), A))
        assert far(theirs[image], as_the_peer_shows(undivided[None])[0]) < CLOSE
        assert far(theirs[image], as_the_peer_shows(twin[None])[0]) > 0.05


def test_t1b_grad_cam_pp_means_another_denominator():
    """The sum of G^3 A that the peer computes is not equation 19's G^3 times the sum of A: its map would still be another."""
    model, batch = bending(15, 18, steep=10.0).double(), pictures(15, 18).double()
    for image, target in enumerate(TARGETS):
        A, G = evidence(model, "relu1", batch[image], target)
        joint = 2 * G**2 + (G**3 * A).sum((1, 2), keepdims=True) + 1e-8
        meant = torch.from_numpy(weighed((G**2 / joint * np.maximum(G, 0)).sum((1, 2)), A))
        twin = torch.from_numpy(TWINS["grad_cam_pp"](A, G))
        assert far(as_the_peer_shows(meant[None]), as_the_peer_shows(twin[None])) > 0.05


def test_t2_smooth_grad_cam_pp_shows_the_last_noisy_image():
    """Its map, and the ReLU in its weights, are of the last copy; with its own noise, the paper's equation gives another map."""
    model, batch, samples, std = bending(15, 18, steep=10.0).double(), pictures(15, 18).double(), 4, 0.5
    torch.manual_seed(3)
    theirs = peers_heatmap(peer.SmoothGradCAMpp, model, batch, "relu2", num_samples=samples, std=std)
    torch.manual_seed(3)
    noises = [torch.distributions.Normal(0, std).sample(batch.shape) for _ in range(samples)]
    for image, target in enumerate(TARGETS):
        A, _ = evidence(model, "relu2", batch[image], target)
        noisy = [evidence(model, "relu2", batch[image] + noise[image], target) for noise in noises]
        twin = torch.from_numpy(TWINS["smooth_grad_cam_pp"](A, [G for _, G in noisy]))
        D2, D3 = (sum(G**power for _, G in noisy) / samples for power in (2, 3))
        last_A, last_G = noisy[-1]
        alpha = D2 / (2 * D2 + (D3 * A).sum((1, 2), keepdims=True) + 1e-8)
        done = torch.from_numpy(weighed((alpha * np.maximum(last_G, 0)).sum((1, 2)), last_A))
        assert far(theirs[image], as_the_peer_shows(done[None])[0]) < CLOSE
        assert far(theirs[image], as_the_peer_shows(twin[None])[0]) > 0.05


def test_t2_smooth_grad_cam_pp_of_ours_is_the_papers():
    model, batch = bending(15, 18, steep=10.0).double(), pictures(15, 18).double()
    raw = explained(model, batch, "smooth_grad_cam_pp", "relu2", samples=4, spread=0.1, seed=7).raw
    draws = torch.randn(4, 3, 15, 18, generator=torch.Generator().manual_seed(7)).double()
    for image, target in enumerate(TARGETS):
        x = batch[image]
        noisy = [evidence(model, "relu2", x + 0.1 * (x.max() - x.min()) * draw, target)[1] for draw in draws]
        twin = TWINS["smooth_grad_cam_pp"](evidence(model, "relu2", x, target)[0], noisy)
        torch.testing.assert_close(raw[image], torch.from_numpy(twin), rtol=1e-8, atol=1e-12)


def test_t4_score_cam_of_signals_fails():
    model, batch = bending(40).double(), pictures(40).double()
    with pytest.raises(ValueError, match="align_corners"):
        peers_heatmap(peer.ScoreCAM, model, batch, "relu2")
    raw = explained(model, batch, "score_cam", "relu2").raw
    for image, target in enumerate(TARGETS):
        A, _ = evidence(model, "relu2", batch[image], target)
        twin = TWINS["score_cam"](A, batch[image].numpy(), score_of(model, target))
        torch.testing.assert_close(raw[image], torch.from_numpy(twin), rtol=1e-9, atol=1e-12)


def test_t5_a_blank_map_in_half_precision_is_not_a_number():
    """1e-8 is 0 in half precision."""
    model, batch = bending(15, 18).half(), pictures(15, 18).half()
    model.last.weight.data.zero_()
    assert peers_heatmap(peer.GradCAM, model, batch, "relu3").isnan().all()
    assert (explained(model, batch, "grad_cam", "relu3").heatmap == 0).all()


def test_t6_a_model_that_is_broken_gets_a_map():
    """Activations that are not numbers count as zero with the peer."""
    model, batch = bending(15, 18), pictures(15, 18)
    model.signed.weight.data[0] = torch.nan
    assert model(batch).isnan().all()
    assert peers_heatmap(peer.ScoreCAM, model, batch, "signed").isfinite().all()
    with pytest.raises(TargetError, match="is not finite in images 0, 1, 2"):
        explained(model, batch, "score_cam", "signed")


def test_t10_what_works_in_place_after_the_layer_is_what_it_explains():
    """The peer's map of the convolution is that of the ReLU behind it."""
    torch.manual_seed(0)
    model, batch = Straight(7, 9, nn.ReLU(inplace=True)).double().eval(), pictures(7, 9).double()
    theirs = peers_heatmap(peer.GradCAM, model, batch, "conv")
    raw = explained(model, batch, "grad_cam", "conv").raw
    assert far(theirs, peers_heatmap(peer.GradCAM, model, batch, "after")) < CLOSE
    for image, target in enumerate(TARGETS):
        twin = torch.from_numpy(TWINS["grad_cam"](*evidence(model, "conv", batch[image], target)))
        torch.testing.assert_close(raw[image], twin, rtol=1e-9, atol=1e-12)
        assert far(theirs[image], as_the_peer_shows(twin[None])[0]) > 0.05


def test_t12_is_cam_shows_masks_of_more_than_full_strength():
    """The peer adds the factors 1/N ... 1 up, so that its last images are 5.5 times as bright as any."""
    model, batch, N = bending(7, 9).double(), pictures(7, 9).double(), 10
    theirs = peers_heatmap(peer.ISCAM, model, batch, "relu3", num_samples=N)
    raw = explained(model, batch, "is_cam", "relu3", steps=N).raw
    for image, target in enumerate(TARGETS):
        (A, _), x, f = evidence(model, "relu3", batch[image], target), batch[image].numpy(), score_of(model, target)
        twin = torch.from_numpy(TWINS["is_cam"](A, x, f, N))
        torch.testing.assert_close(raw[image], twin, rtol=1e-9, atol=1e-12)
        summed = np.cumsum(np.arange(1, N + 1) / N)
        weights = softmax([sum(f(seen_through(x, factor * mask(Ak, x))) for factor in summed) / N for Ak in A])
        done = torch.from_numpy(weighed(weights, A))
        assert far(theirs[image], as_the_peer_shows(done[None])[0]) < CLOSE
        assert summed[-1] == pytest.approx(5.5)
        assert far(theirs[image], as_the_peer_shows(twin[None])[0]) > 0.01
