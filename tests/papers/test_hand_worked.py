"""A network small enough to work out by hand; Captum's own tests hold the same numbers.

conv 1 -> 2 (3 x 3, weights 1, biases -50 and -75), ReLU, flatten, linear 8 -> 4 (rows 1 1 1 1 1 -1 -1 -1), ReLU. The picture is
0..15 as 4 x 4. Window sums 45, 54, 81, 90: channel 0 is -5, 4, 31, 40 and channel 1 is -30, -21, 6, 15; the score is 54.
"""

import pytest
import torch

import glowmap
from tiny_models.convolutional import HandWorked

PICTURE = torch.arange(16.0).reshape(1, 1, 4, 4)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("layer", "wanted"), [("conv1", [11.25, 13.5, 20.25, 22.5]), ("relu1", [0.0, 4.0, 28.0, 32.5])]
)
def test_grad_cam(inplace, frozen, grad_mode, layer, wanted):
    model = HandWorked(inplace).requires_grad_(not frozen)
    with grad_mode():
        found = glowmap.explain(model, PICTURE, target=0, layer=layer)
    assert found.raw.flatten().tolist() == wanted
    assert found.scores.tolist() == [54.0]


def test_two_inputs():
    found = glowmap.explain(HandWorked(), (PICTURE, torch.ones(1, 1, 4, 4)), target=0, layer="conv1")
    assert found.raw.flatten().tolist() == [14.5, 19.0, 32.5, 37.0]


def test_keyword_inputs():
    found = glowmap.explain(HandWorked(), {"image": PICTURE, "added": torch.ones(1, 1, 4, 4)}, target=0, layer="conv1")
    assert found.raw.flatten().tolist() == [14.5, 19.0, 32.5, 37.0]


@pytest.mark.parametrize(("silenced", "wanted"), [(1, [-3.75, 3.0, 23.25, 30.0]), (0, [15.0, 10.5, -3.0, -7.5])])
def test_before_the_channels_are_summed(silenced, wanted):
    """One channel's share of the map, read off by silencing the other far below its ReLU; the score's own stays open."""
    model = HandWorked()
    model.conv1.bias.data[silenced] = -1000.0
    model.fc1.bias.data.fill_(100.0)
    assert glowmap.explain(model, PICTURE, target=0, layer="conv1").raw.flatten().tolist() == wanted


def test_gradient_at_the_networks_own_input():
    """The convolution's input: mean gradient 0.5625, so the map is 0.5625 times the picture, with its sign."""

    class WithInput(HandWorked):
        def __init__(self):
            super().__init__()
            self.entry = torch.nn.Identity()

        def forward(self, image):
            return super().forward(self.entry(image))

    picture = PICTURE.clone()
    picture[0, 0, 1, 1] = -4
    found = glowmap.explain(WithInput(), picture, target=0, layer="entry")
    assert torch.equal(found.raw[0], 0.5625 * picture[0, 0])
    assert found.heatmap[0, 1, 1] == 0
