"""The models that all peers explain too: random weights, values of both signs, gradients that differ from cell to cell."""

import math
from functools import cache

import torch
import torchvision
from torch import nn

TARGETS = [2, 0, 3]  # one an image
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Bending(nn.Module):
    """Three convolutions and a head that bends and looks at every cell; ``signed`` is not rectified, ``relu*`` are.

    With ``stride`` 1 all layers have the image's size. ``steep`` multiplies the gradients.
    """

    def __init__(self, *sides, stride=2, steep=1.0, bias=0.0):
        super().__init__()
        conv, ends = CONVOLUTIONS[len(sides)], [-(-side // stride**2) for side in sides]
        self.signed = conv(3, 6, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(6, 8, 3, stride, 1)
        self.relu2 = nn.ReLU()
        self.conv3 = conv(8, 10, 3, stride, 1)
        self.relu3 = nn.ReLU()
        self.hidden = nn.Linear(10 * math.prod(ends), 7)
        self.last = nn.Linear(7, 4)
        for layer in (self.conv2, self.conv3, self.hidden):
            layer.weight.data *= 2
        self.last.weight.data *= steep
        self.last.bias.data += bias

    def forward(self, images):
        maps = self.relu2(self.conv2(self.relu1(self.signed(images))))
        return self.last(torch.tanh(self.hidden(self.relu3(self.conv3(maps)).flatten(1))))


def bending(*sides, seed=0, **how):
    torch.manual_seed(seed)
    return Bending(*sides, **how).eval()


def pictures(*sides, batch=3, seed=1):
    return torch.randn(batch, 3, *sides, generator=torch.Generator().manual_seed(seed))


@cache
def resnet(steep=1.0):
    """ResNet-18, whose ReLUs work in place."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=4).eval()
    model.fc.weight.data *= steep
    return model


class Straight(nn.Module):
    """One convolution, with ``after`` behind it, and a linear head on all cells."""

    def __init__(self, rows, columns, after):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.after = after
        self.head = nn.Linear(5 * rows * columns, 4)

    def forward(self, images):
        return self.head(self.after(self.conv(images)).flatten(1))


class Given(nn.Module):
    """Maps and gradients as they are wished for: the images are the maps, and the score is their product with the weights."""

    def __init__(self, gradients):
        super().__init__()
        self.layer = nn.Identity()
        self.gradients = nn.Parameter(gradients)

    def forward(self, images):
        return (self.layer(images) * self.gradients).flatten(1).sum(1, keepdim=True)


def evidence(model, layer, image, target):
    """One image's maps at a layer and their gradients, as NumPy arrays in double precision, whatever comes after the layer."""
    kept = []

    def keep(_module, _inputs, output):
        kept.append(output.detach().clone().requires_grad_())
        return kept[0].clone()

    with model.get_submodule(layer).register_forward_hook(keep):
        score = model(image[None])[0, target]
    (gradients,) = torch.autograd.grad(score, kept)
    return kept[0].detach()[0].double().numpy(), gradients[0].double().numpy()


def far(one, other):
    """How far apart two heatmaps are at most, of 1."""
    return float((torch.as_tensor(one) - torch.as_tensor(other)).abs().max())


def speaks(heatmaps):
    """Tell whether at least two of three heatmaps are not blank, so that being the same means something."""
    return heatmaps.flatten(1).amax(1).median() > 0.999
