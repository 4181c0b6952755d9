"""Cautions: what a person must know before trusting a map."""

import pytest
import torch
from torch import nn

import glowmap
from glowmap.cautions import CAUTIONS, Caution
from glowmap.targets import Pixels
from tiny_models.convolutional import Classifier, Segmenter, images


class BlindHalf(nn.Module):
    """Its head flattens the maps and has no weight on their lower half: whatever lies there, the score cannot know."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 8 * 10, 4)
        self.head.weight.data.reshape(4, 6, 8, 10)[:, :, 4:] = 0

    def forward(self, images):
        return self.head(torch.tanh(self.conv(images)).flatten(1))


@pytest.fixture
def blind():
    torch.manual_seed(1)
    return BlindHalf().eval()


def lower_half(found):
    heat = found.raw.relu()
    return (heat[:, 4:].sum((1, 2)) / heat.sum((1, 2))).tolist()


@pytest.mark.parametrize("method", ["hires_cam", "layer_cam", "elementwise_grad_cam"])
def test_elementwise_methods_put_nothing_where_the_head_cannot_see(blind, method):
    found = glowmap.explain(blind, images(3, 8, 10), target=1, layer="conv", method=method)
    assert lower_half(found) == [0, 0, 0]
    assert found.cautions == ()


@pytest.mark.parametrize("method", ["grad_cam", "xgrad_cam", "grad_cam_pp", "shapley_cam"])
def test_grad_cam_does_and_a_note_says_how_much(blind, method):
    found = glowmap.explain(blind, images(3, 8, 10), target=1, layer="conv", method=method)
    shares = lower_half(found)
    assert max(shares) > 0.2
    wanted = [
        f"image {image}, class 1 at 'conv': {share:.0%} of this heat lies where the score does not depend on the layer at all; "
        "hires_cam and layer_cam show only what it depends on"
        for image, share in enumerate(shares)
        if share >= 0.1
    ]
    assert list(found.cautions) == wanted


def test_asking_methods_agree_that_nothing_is_there(blind):
    with_parameters = glowmap.METHODS["occlusion"].with_parameters(window=2, stride=2)
    found = glowmap.explain(blind, images(2, 8, 10), target=1, method=with_parameters)
    # a convolution reaches one row further
    assert float(found.raw[:, 6:].abs().max()) < 1e-5 * float(found.raw[:, :4].abs().max())


def test_a_pooled_head_gets_no_note():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    assert glowmap.explain(model.eval(), images(3), target=1, layer="1").cautions == ()


def test_a_question_about_places_is_weighed_place_by_place_and_averaging_says_what_it_loses():
    segmenter, mask = Segmenter().eval(), torch.zeros(16, 20)
    mask[4:8, 4:8] = 1
    question = Pixels(2, mask)
    assert glowmap.explain(segmenter, images(), target=question, layer="encoder.2").method == "hires_cam"
    assert glowmap.explain(segmenter, images(), layer="encoder.2").method == "hires_cam"
    averaged = glowmap.explain(segmenter, images(), target=question, layer="encoder.2", method="grad_cam")
    (caution,) = [caution for caution in averaged.cautions if "averaged away" in caution]
    recorded = {}
    handle = segmenter.encoder[2].register_forward_hook(lambda _m, _i, output: recorded.update(maps=output))
    score = (segmenter(images())["out"][:, 2] * mask).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, recorded["maps"])
    lost = 1 - gradient.mean((2, 3)).square().sum(1) / gradient.square().mean((2, 3)).sum(1)
    assert f"{float(lost.mean()):.0%} of their power" in caution
    assert caution.startswith("grad_cam weighs each channel of 'encoder.2'")


@pytest.mark.parametrize("method", ["hires_cam", "layer_cam", "eigen_cam"])
def test_no_such_note_where_nothing_is_averaged(method):
    segmenter = Segmenter().eval()
    found = glowmap.explain(segmenter, images(), target=Pixels(2, torch.ones(16, 20)), layer="encoder.2", method=method)
    assert not any("averaged away" in caution for caution in found.cautions)


def test_a_head_that_pools_needs_no_other_method_and_no_note():
    found = glowmap.explain(Classifier().eval(), images(), target=1, layer="features.4")
    assert found.method == "grad_cam"
    assert not any("averaged away" in caution for caution in found.cautions)


def test_every_caution_is_of_a_kind(blind):
    """A sentence alone has no code by which docs, files and pages find it."""
    batch = images(3, 8, 10)
    explanations = [
        glowmap.explain(blind.train(), batch, target=1, layer="conv", method="grad_cam"),
        *glowmap.compare(blind, batch, target=[1, lambda output: output[:, 1]], layer="conv"),
        glowmap.explain(
            nn.Conv2d(3, 2, 3),
            batch,
            target=lambda output: output[:, 1].sum((1, 2)),
            method=glowmap.METHODS["rise"].with_parameters(masks=4),
            smooth="flips",
        ),
        glowmap.explain(
            blind, batch, target=1, layer="conv", method=glowmap.METHODS["d_rise"].with_parameters(masks=4)
        ),
        glowmap.explain(
            Segmenter().eval(), images(2), target=Pixels(1, torch.ones(16, 20)), layer="encoder.1", method="grad_cam"
        ),
        *glowmap.concepts(Classifier().eval(), images(1), layer="features.0", count=2),
    ]
    cautions = {caution for explanation in explanations for caution in explanation.cautions}
    assert {caution.code for caution in cautions} >= {
        "training-mode",
        "ignored-target",
        "moved-output",
        "negative-activations",
        "no-detection",
    }
    assert all(isinstance(caution, Caution) and caution.kind is CAUTIONS[caution.code] for caution in cautions)
