"""Against pytorch-grad-cam: the same maps, and where the two differ, the paper's equation between them."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import glowmap
import papers.activation
import papers.gradient
import papers.perturbation
import papers.whole_network
from glowmap import targets
from glowmap.errors import TargetError
from glowmap.methods import METHODS
from papers.twins import TWINS
from peers.nets import TARGETS, Given, Straight, bending, evidence, far, pictures, resnet, speaks
from tiny_models.convolutional import Segmenter

peer = pytest.importorskip("pytorch_grad_cam", reason="make test-peers installs it")
model_targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
pytestmark = pytest.mark.filterwarnings("ignore")

PEERS = {
    "grad_cam": peer.GradCAM,
    "hires_cam": peer.HiResCAM,
    "elementwise_grad_cam": peer.GradCAMElementWise,
    "layer_cam": peer.LayerCAM,
    "xgrad_cam": peer.XGradCAM,
    "seg_eigen_cam": peer.SegEigenCAM,
    "shapley_cam": peer.ShapleyCAM,
    "fem": peer.FEM,
    "grad_cam_pp": peer.GradCAMPlusPlus,
    "score_cam": peer.ScoreCAM,
    "ablation_cam": peer.AblationCAM,
    "eigen_cam": peer.EigenCAM,
    "eigen_grad_cam": peer.EigenGradCAM,
    "kpca_cam": peer.KPCA_CAM,
}
COMPONENTS = {"eigen_cam", "eigen_grad_cam", "kpca_cam"}  # whose sign the peer leaves to its solver
CLOSE = 5e-6


@contextmanager
def held(cam):
    """Give the hooks back: the peer's own way to do so fails for ShapleyCAM, and then leaves them."""
    try:
        yield cam
    finally:
        cam.activations_and_grads.activations.clear()
        cam.activations_and_grads.gradients.clear()
        cam.activations_and_grads.release()


def peers_heatmap(kind, model, batch, layers, questions=TARGETS, **how):
    questions = [one if callable(one) else model_targets.ClassifierOutputTarget(one) for one in questions]
    with held(kind(model, [model.get_submodule(layer) for layer in layers], **how)) as cam:
        return torch.from_numpy(np.array(cam(batch, questions)))


def rescaled(maps):
    """Rescale as the peer does: image by image, with 1e-7 on the maximum."""
    space = tuple(range(1, maps.ndim))
    maps = maps - maps.amin(space, keepdim=True)
    return maps / (1e-7 + maps.amax(space, keepdim=True))


def as_the_peer_shows(raw, size):
    """Take a raw map through the peer's ReLU, its scaling, OpenCV's bilinear resizing, and its scaling again."""
    if tuple(raw.shape[1:]) == tuple(size):
        return rescaled(rescaled(raw.relu()))
    large = F.interpolate(rescaled(raw.relu())[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return rescaled(large)


def explained(model, batch, name, layer, questions=TARGETS, **parameters):
    method = METHODS[name].with_parameters(**parameters)
    return glowmap.explain(model, batch, target=torch.tensor(questions), layer=layer, method=method)


# The same maps


@pytest.mark.parametrize("layer", ["signed", "relu1", "relu2", "relu3"])
@pytest.mark.parametrize("name", sorted(set(PEERS) - COMPONENTS - {"grad_cam_pp"}))
def test_maps_are_the_same(name, layer):
    """A bias on the scores keeps them positive, by which the peer's Ablation-CAM divides."""
    model, batch = bending(15, 18, bias=1.0), pictures(15, 18)
    theirs = peers_heatmap(PEERS[name], model, batch, [layer])
    found = explained(model, batch, name, layer, **({"corners": True} if name == "score_cam" else {}))
    assert speaks(theirs)
    assert far(as_the_peer_shows(found.raw, batch.shape[2:]), theirs) < CLOSE
    assert far(found.heatmap, theirs) < CLOSE


@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
@pytest.mark.parametrize(
    "name", ["grad_cam", "hires_cam", "layer_cam", "xgrad_cam", "elementwise_grad_cam", "seg_eigen_cam", "grad_cam_pp"]
)
def test_maps_of_a_resnet_are_the_same(name, layer):
    """Grad-CAM++ with gradients large enough to drown the 1e-6 that the peer adds to its denominators."""
    model, batch = resnet(1e8 if name == "grad_cam_pp" else 1.0), pictures(64, 64)
    theirs = peers_heatmap(PEERS[name], model, batch, [layer])
    found = explained(model, batch, name, layer)
    assert speaks(theirs)
    assert far(as_the_peer_shows(found.raw, batch.shape[2:]), theirs) < CLOSE


@pytest.mark.parametrize("layer", ["signed", "relu1", "relu2", "relu3"])
@pytest.mark.parametrize("name", sorted(COMPONENTS))
def test_components_are_the_same_up_to_their_sign(name, layer):
    """In double precision, as the solvers' last digits in single precision differ by more than CLOSE."""
    model, batch = bending(15, 18).double(), pictures(15, 18).double()
    theirs = peers_heatmap(PEERS[name], model, batch, [layer])
    raw = explained(model, batch, name, layer).raw
    both = [as_the_peer_shows(sign * raw, batch.shape[2:]) for sign in (1, -1)]
    assert speaks(theirs)
    for image in range(len(batch)):
        assert min(far(one[image], theirs[image]) for one in both) < CLOSE


@pytest.mark.parametrize("layer", ["relu1", "relu2", "relu3"])
def test_grad_cam_pp_is_the_same_where_gradients_are_large(layer):
    model, batch = bending(15, 18, steep=1e4), pictures(15, 18)
    theirs = peers_heatmap(peer.GradCAMPlusPlus, model, batch, [layer])
    assert far(as_the_peer_shows(explained(model, batch, "grad_cam_pp", layer).raw, (15, 18)), theirs) < CLOSE


@pytest.mark.parametrize("name", ["grad_cam", "hires_cam", "layer_cam", "xgrad_cam", "seg_eigen_cam", "fem"])
def test_volumes_are_the_same_at_the_images_resolution(name):
    """Elsewhere the peer enlarges by cubic splines, which leave [0, 1]."""
    model, batch = bending(4, 5, 6, stride=1), pictures(4, 5, 6)
    theirs = peers_heatmap(PEERS[name], model, batch, ["relu2"])
    assert speaks(theirs)
    assert far(as_the_peer_shows(explained(model, batch, name, "relu2").raw, (4, 5, 6)), theirs) < CLOSE


@pytest.mark.parametrize("how", ["mean", "product"])
def test_fused_layers_are_the_same(how):
    """The peer averages the layers that it is given; its RefineCAM multiplies them.

    Before it averages, it does not scale a layer again that was enlarged, as happens here: so layers of the image's size.
    """
    model, batch, layers = bending(15, 18), pictures(15, 18), ["relu1", "relu2", "relu3"]
    if how == "mean":
        model = bending(15, 18, stride=1)
    if how == "mean":
        theirs = peers_heatmap(peer.LayerCAM, model, batch, layers)
    else:
        modules = [model.get_submodule(layer) for layer in layers]
        questions = [model_targets.ClassifierOutputTarget(target) for target in TARGETS]
        theirs = torch.from_numpy(peer.RefineCAM(model, modules, base_method=peer.LayerCAM)(batch, questions))
    found = glowmap.explain(model, batch, target=torch.tensor(TARGETS), layer=layers, method="layer_cam").fused(how)
    assert far(found[0].heatmap, theirs) < CLOSE


def test_sets_of_pixels_are_the_same():
    torch.manual_seed(0)
    model, batch = Segmenter().eval(), pictures(16, 20, batch=2)
    masks = torch.zeros(2, 16, 20)
    masks[0, 2:9, 3:8] = 1
    masks[1, 10:, 12:] = 1
    plain = nn.Sequential(model, Out())
    questions = [model_targets.SemanticSegmentationTarget(3, mask.numpy()) for mask in masks]
    theirs = peers_heatmap(peer.HiResCAM, plain, batch, ["0.encoder.1"], questions)
    found = glowmap.explain(model, batch, target=targets.Pixels(3, masks), layer="encoder.1", method="hires_cam")
    assert speaks(theirs)
    assert far(as_the_peer_shows(found.raw, (16, 20)), theirs) < CLOSE


class Out(nn.Module):
    def forward(self, answer):
        return answer["out"]


def test_a_question_of_ones_own_is_the_same():
    """A class against its nearest rivals, each as probable as the model finds it: the peer's FinerCAM."""
    model, batch = bending(15, 18), pictures(15, 18)

    def against_rivals(logits):
        shares = logits.softmax(1)[:, [0, 3]]
        return (shares * (logits[:, [2]] - logits[:, [0, 3]])).sum(1) / shares.sum(1)

    theirs = peers_heatmap(
        peer.GradCAM, model, batch, ["relu3"], [model_targets.FinerWeightedTarget(2, [0, 3], 1.0)] * 3
    )
    found = glowmap.explain(model, batch, target=against_rivals, layer="relu3", method="grad_cam")
    assert far(as_the_peer_shows(found.raw, (15, 18)), theirs) < CLOSE


def test_guided_backprop_is_the_same():
    """The peer answers for the first image only, pixels x colours."""
    model, batch = bending(15, 18), pictures(15, 18)
    raw = explained(model, batch, "guided_backprop", None).raw
    for image, target in enumerate(TARGETS):
        theirs = peer.GuidedBackpropReLUModel(bending(15, 18))(batch[image : image + 1].clone(), target)
        torch.testing.assert_close(raw[image], torch.from_numpy(theirs.sum(2)), rtol=1e-5, atol=1e-8)


# Where the peer differs from the paper


def test_p1_fewer_targets_than_images_leave_blank_maps():
    model, batch = bending(15, 18), pictures(15, 18)
    theirs = peers_heatmap(peer.GradCAM, model, batch, ["relu3"], TARGETS[:1])
    assert theirs.amax((1, 2)).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    with pytest.raises(TargetError, match="1 targets for 3 images"):
        explained(model, batch, "grad_cam", "relu3", TARGETS[:1])


def test_p2_what_works_in_place_after_the_layer_changes_its_record():
    """The peer multiplies what comes out of the ReLU by the gradients of what goes in."""
    torch.manual_seed(0)
    model, batch = Straight(7, 9, nn.ReLU(inplace=True)).eval(), pictures(7, 9)
    theirs = peers_heatmap(peer.GradCAM, model, batch, ["conv"])
    raw = explained(model, batch, "grad_cam", "conv").raw
    for image, target in enumerate(TARGETS):
        twin = torch.from_numpy(TWINS["grad_cam"](*evidence(model, "conv", batch[image], target)))
        torch.testing.assert_close(raw[image].double(), twin, rtol=1e-4, atol=1e-6)
        assert far(theirs[image], as_the_peer_shows(twin[None], (7, 9))[0]) > 0.1


def ablation_twin(model, image, target):
    A, _ = evidence(model, "conv", image, target)

    def score(maps):
        return model.head(torch.from_numpy(maps).flatten().to(model.head.weight))[target].item()

    return TWINS["ablation_cam"](A, score), score(A)


def test_p7_ablation_overwrites_with_ever_larger_numbers():
    """Where no channel's least value is 0, each next row of the peer's batch gets another -1e7, so that its size matters."""
    torch.manual_seed(0)
    model, batch = Straight(7, 9, nn.Identity()).double().eval(), pictures(7, 9).double()
    model.head.bias.data += 5
    one, many = (peers_heatmap(peer.AblationCAM, model, batch, ["conv"], batch_size=size) for size in (1, 32))
    assert far(one, many) > 0.05
    raw = explained(model, batch, "ablation_cam", "conv").raw
    for image, target in enumerate(TARGETS):
        twin, score = ablation_twin(model, batch[image], target)
        assert score > 0
        torch.testing.assert_close(raw[image] / score, torch.from_numpy(twin), rtol=1e-9, atol=1e-12)
        shown = as_the_peer_shows(torch.from_numpy(twin)[None], (7, 9))[0]
        assert min(far(one[image], shown), far(many[image], shown)) > 0.05


def test_p9_ablation_divided_by_a_negative_score_stands_on_its_head():
    """The paper takes the score to be positive; a bias of the head changes nothing about what the score depends on."""
    high, low = (bending(15, 18, bias=bias).double() for bias in (1.0, -50.0))
    batch = pictures(15, 18).double()
    raw = explained(high, batch, "ablation_cam", "relu3").raw
    torch.testing.assert_close(explained(low, batch, "ablation_cam", "relu3").raw, raw, rtol=1e-6, atol=1e-9)
    right, wrong = (peers_heatmap(peer.AblationCAM, model, batch, ["relu3"]) for model in (high, low))
    upright, upside_down = (as_the_peer_shows(sign * raw, (15, 18)) for sign in (1, -1))
    # the peer keeps scores in single precision, and here takes small differences of -50
    assert far(right, upright) < 1e-4
    assert far(wrong, upside_down) < 1e-3
    assert far(wrong, upright) > 0.9


def test_p9_ablation_divided_by_a_score_of_zero_is_not_a_number():
    model, batch = bending(15, 18), pictures(15, 18)
    for values in model.last.parameters():
        values.data.zero_()
    assert peers_heatmap(peer.AblationCAM, model, batch, ["relu3"]).isnan().all()
    assert (explained(model, batch, "ablation_cam", "relu3").raw == 0).all()


def test_p15_the_sign_of_eigen_cam_is_left_to_chance():
    """The twin is turned to the mean over channels; the peer faces the other way for some images and not for others."""
    model, batch = bending(15, 18).double(), pictures(15, 18, batch=30, seed=5).double()
    questions = [0] * len(batch)
    theirs = peers_heatmap(peer.EigenCAM, model, batch, ["relu3"], questions)
    raw, wrong = explained(model, batch, "eigen_cam", "relu3", questions).raw, 0
    for image, theirs_here in enumerate(theirs):
        twin = torch.from_numpy(TWINS["eigen_cam"](evidence(model, "relu3", batch[image], 0)[0]))
        torch.testing.assert_close(raw[image], twin, rtol=1e-7, atol=1e-9)
        off = far(theirs_here, as_the_peer_shows(twin[None], (15, 18))[0])
        assert off < CLOSE or off > 0.5
        wrong += off > 0.5
    assert 0 < wrong < len(batch)


def full_grad_terms(model, image, target):
    """The image times its gradient, and each convolution's bias times the gradient of what it puts out."""
    asked, outputs = image[None].clone().requires_grad_(), []
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(lambda *seen: outputs.append(seen[2])) for module in convolutions]
    score = model(asked)[0, target]
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(score, [asked, *outputs])
    factors = [image, *(module.bias.detach()[:, None, None] for module in convolutions)]
    return [(factor * gradient[0]).numpy() for factor, gradient in zip(factors, gradients, strict=True)]


def test_p16_full_grad_scales_every_channel_by_itself():
    """The paper scales all channels of a layer together, so that one without a say stays without."""
    model, batch, size = bending(8, 9).double(), pictures(8, 9).double(), (8, 9)
    theirs = peers_heatmap(peer.FullGrad, model, batch, [])
    raw = explained(model, batch, "full_grad", None).raw
    for image, target in enumerate(TARGETS):
        terms = full_grad_terms(model, batch[image], target)
        twin = torch.from_numpy(sum(papers.whole_network.psi(term, size) for term in terms))
        torch.testing.assert_close(raw[image], twin, rtol=1e-9, atol=1e-12)
        channels = torch.cat(
            [
                F.interpolate(rescaled(torch.from_numpy(term).abs())[:, None], size, mode="bilinear")[:, 0]
                for term in terms
            ]
        )
        assert far(theirs[image], rescaled(channels.sum(0)[None])[0]) < CLOSE
        assert far(theirs[image], rescaled(twin[None])[0]) > 0.05


def test_p17_guided_backprop_adds_up_in_what_it_returned():
    model, image = bending(15, 18), pictures(15, 18)[:1]
    guided = peer.GuidedBackpropReLUModel(bending(15, 18))
    first = guided(image, 2)
    kept = first.copy()
    guided(image, 2)
    np.testing.assert_allclose(first, 2 * kept, rtol=1e-5)
    assert np.abs(kept).max() > 0
    ours = [explained(model, pictures(15, 18)[:1], "guided_backprop", None, [2]).raw for _ in range(2)]
    assert torch.equal(*ours)
    np.testing.assert_allclose(ours[0][0].numpy(), kept.sum(2), rtol=1e-5, atol=1e-8)


def test_p26_xgrad_cam_divides_by_what_cancels():
    """A channel that sums to zero has no average; the peer's 1e-7 gives it a weight of tens of millions."""
    maps = torch.tensor([[[[2.0, -2.0]], [[1.0, 3.0]]]])
    gradients = torch.tensor([[[[5.0, 1.0]], [[2.0, 6.0]]]])
    twin = torch.from_numpy(TWINS["xgrad_cam"](maps[0].double().numpy(), gradients[0].double().numpy()))
    assert twin.tolist() == [[5.0, 15.0]]
    raw = glowmap.explain(Given(gradients), maps, target=0, layer="layer", method="xgrad_cam").raw
    torch.testing.assert_close(raw[0].double(), twin)
    theirs = peers_heatmap(peer.XGradCAM, Given(gradients), maps.requires_grad_(), ["layer"], [0])
    assert as_the_peer_shows(twin[None], (1, 2)).tolist() == [[pytest.approx([0, 1], abs=1e-6)]]
    assert theirs.tolist() == [[pytest.approx([1, 0], abs=1e-6)]]


def test_grad_cam_pp_with_1e_6_drowns_small_gradients():
    """Equation 19 has no such term: without it alpha is about one half where gradients are small."""
    model, batch = bending(15, 18, steep=1e-3), pictures(15, 18)
    theirs = peers_heatmap(peer.GradCAMPlusPlus, model, batch, ["relu2"])
    raw = explained(model, batch, "grad_cam_pp", "relu2").raw
    for image, target in enumerate(TARGETS):
        twin = torch.from_numpy(TWINS["grad_cam_pp"](*evidence(model, "relu2", batch[image], target)))
        torch.testing.assert_close(raw[image].double(), twin, rtol=1e-4, atol=1e-9)
        assert far(theirs[image], as_the_peer_shows(twin[None], (15, 18))[0]) > 0.05
