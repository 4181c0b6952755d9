"""The recipe that everyone starts from, written out plainly, and the same heatmap from Glowmap."""

import pytest
import torch
import torch.nn.functional as F

import glowmap
from glowmap import targets

torchvision = pytest.importorskip("torchvision")


def plain_grad_cam(model, layer, images, score_of):
    seen = {}
    forward = layer.register_forward_hook(lambda _module, _inputs, output: seen.update(activations=output))
    backward = layer.register_full_backward_hook(lambda _module, _inputs, outputs: seen.update(gradients=outputs[0]))
    score_of(model(images)).backward()
    forward.remove()
    backward.remove()
    weights = seen["gradients"].mean((2, 3), keepdim=True)
    heat = F.relu((weights * seen["activations"]).sum(1, keepdim=True))
    heat = F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    return ((heat - low) / (high - low + 1e-8)).detach()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(3)
    return torchvision.models.resnet50(weights=None).eval()


@pytest.fixture(scope="module")
def deeplab():
    torch.manual_seed(4)
    return torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None).eval()


def both_signs(index):
    """With random weights a class's map may well be negative everywhere; then its negation's is not."""
    return [lambda out: out[:, index], lambda out: -out[:, index]]


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4"])
def test_resnet50_one_image(resnet, layer):
    images = torch.randn(1, 3, 128, 160)
    found = glowmap.explain(resnet, images, target=both_signs(3), layer=layer)
    wanted = [
        plain_grad_cam(resnet, resnet.get_submodule(layer), images, lambda out, s=sign: s(out).sum())
        for sign in both_signs(3)
    ]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.heatmap, other, atol=1e-5, rtol=0)
    assert max(other.max() for other in wanted) > 0.99


def test_resnet50_batch_is_normalised_image_by_image(resnet):
    images = torch.randn(3, 3, 96, 96) * torch.tensor([0.3, 1.0, 3.0])[:, None, None, None]
    shown = 0
    for sign in both_signs(5):
        found = glowmap.explain(resnet, images, target=sign, layer="layer4")
        wanted = torch.cat(
            [plain_grad_cam(resnet, resnet.layer4, image[None], lambda out, s=sign: s(out).sum()) for image in images]
        )
        torch.testing.assert_close(found.heatmap, wanted, atol=1e-5, rtol=0)
        shown += (wanted.amax((1, 2)) > 0.99).sum()
    assert shown >= 3


def test_deeplab_all_layers_from_one_pass(deeplab):
    images = torch.randn(1, 3, 97, 130)
    mask = torch.zeros(97, 130)
    mask[40:80, 30:90] = 1
    layers = [f"backbone.layer{i}" for i in (1, 2, 3, 4)]
    found = glowmap.explain(deeplab, images, target=targets.Pixels(7, mask), layer=layers, method="grad_cam")
    assert [one.layer for one in found] == layers
    for one in found:
        wanted = plain_grad_cam(
            deeplab, deeplab.get_submodule(one.layer), images, lambda out: (out["out"][:, 7] * mask).sum()
        )
        torch.testing.assert_close(one.heatmap, wanted, atol=1e-5, rtol=0)
        assert wanted.max() > 0.99


def test_deeplab_default_mask_is_what_it_predicts_as_the_class(deeplab):
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        labels = deeplab(images)["out"].argmax(1)
    index = int(labels.flatten().mode().values)
    wanted = plain_grad_cam(
        deeplab, deeplab.backbone.layer4, images, lambda out: (out["out"][:, index] * (labels == index)).sum()
    )
    found = glowmap.explain(deeplab, images, target=index, layer="backbone.layer4", method="grad_cam")
    torch.testing.assert_close(found.heatmap, wanted, atol=1e-5, rtol=0)
