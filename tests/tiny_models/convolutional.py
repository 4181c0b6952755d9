"""Tiny models, each with the one property that a test is about."""

import torch
from torch import nn

import glowmap
from glowmap.evidence import ATTENTION, map_places


class Classifier(nn.Module):
    """Two convolutions, pooling, a linear head: 3 colours, 4 classes; ``features`` halves rows and columns twice."""

    def __init__(self, classes=4, inplace=False):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(inplace)
        )
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        return self.head(self.features(images).mean((2, 3)))


class FlattenClassifier(nn.Module):
    """One convolution and a linear head over all cells: no pooling, so every cell has weights of its own."""

    def __init__(self, rows=8, columns=8, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Linear(5 * rows * columns, classes)

    def forward(self, images):
        return self.head(self.conv(images).flatten(1))


class Segmenter(nn.Module):
    """An encoder and a 1 x 1 head, upsampled to the input; answers ``{"out": logits}`` as torchvision's do."""

    def __init__(self, classes=5):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 7, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(7, classes, 1)

    def forward(self, images):
        logits = self.head(self.encoder(images))
        return {"out": nn.functional.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)}


class ColourSegmenter(nn.Module):
    """Known truth: class 0 where blue leads, 1 where green leads, 2 where red leads, at every pixel; grey is blue."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1, bias=False)
        self.layer.weight.data = torch.eye(3).flip(0).reshape(3, 3, 1, 1)

    def forward(self, images):
        return self.layer(images)


class OneOutput(nn.Module):
    """Known truth: its one logit at a pixel is the picture's first colour there."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, picture):
        return self.layer(picture)[:, :1]


class HandWorked(nn.Module):
    """The network whose Grad-CAM was worked out by hand: see tests/papers/test_hand_worked.py."""

    def __init__(self, inplace=False):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.relu1 = nn.ReLU(inplace)
        self.fc1 = nn.Linear(8, 4)
        self.relu2 = nn.ReLU(inplace)
        self.conv1.weight.data.fill_(1.0)
        self.conv1.bias.data = torch.tensor([-50.0, -75.0])
        self.fc1.weight.data = torch.tensor([[1.0] * 5 + [-1.0] * 3]).repeat(4, 1)
        self.fc1.bias.data.zero_()

    def forward(self, image, added=None):
        image = image if added is None else image + added
        return self.relu2(self.fc1(self.relu1(self.conv1(image)).flatten(1)))


def images(batch=2, rows=16, columns=20, colours=3, seed=1):
    return torch.randn(batch, colours, rows, columns, generator=torch.Generator().manual_seed(seed))


CHEAP = {  # knobs that make the expensive ones quick here
    "rise": {"masks": 40, "cells": 3},
    "d_rise": {"masks": 40, "cells": 3},
    "ss_cam": {"samples": 3},
    "is_cam": {"steps": 3},
    "gscore_cam": {"channels": 4},
    "group_cam": {"groups": 3},
    "opti_cam": {"steps": 5},
    "smooth_grad": {"samples": 3},
    "smooth_grad_cam_pp": {"samples": 3},
    "integrated_gradients": {"steps": 4},
    "integrated_grad_cam": {"steps": 4},
}


# The methods that a convolutional network will do for; tests/capture/test_attention.py tests the others.
ON_MAPS = [name for name, method in glowmap.METHODS.items() if map_places(method.needs, ("layer",)) != (ATTENTION,)]


def with_parameters(name):
    """Take a method from the shelf, made quick enough for a test."""
    return glowmap.METHODS[name].with_parameters(**CHEAP.get(name, {}))
