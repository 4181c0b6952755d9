"""Modules as people write them themselves: volumes, signals, patches cut by hand, a picture beside a table."""

import itertools

import torch
from torch import Tensor, nn

from zoo.specimen import Specimen, noise


def _convolved(dimensions: int, before: int, after: int, stride: int = 1) -> nn.Sequential:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    return nn.Sequential(convolution(before, after, 3, stride, 1), norm(after), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions beside a shortcut, on one axis, two or three."""

    def __init__(self, dimensions: int, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolved(dimensions, before, after, stride), _convolved(dimensions, after, after)[:2]
        )
        self.shortcut = _convolved(dimensions, before, after, stride)[:2]
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network of a signal, a picture or a volume."""

    def __init__(self, dimensions: int, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.stem = _convolved(dimensions, channels, 8, 2)
        widths = (8, 16, 32)
        self.stages = nn.Sequential(
            *(Residual(dimensions, before, after, 2) for before, after in itertools.pairwise(widths))
        )
        self.head = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x)).flatten(2).mean(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class WithTable(ResNet):
    """A picture, and numbers from a table beside it."""

    def __init__(self) -> None:
        super().__init__(2, 3)
        self.table = nn.Linear(4, 32)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(self.features(image) + self.table(table))


class UNet(nn.Module):
    """Down twice, up twice, with what was seen on the way down beside it: a mask of a picture or a volume."""

    def __init__(self, dimensions: int, channels: int, classes: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList([_convolved(dimensions, channels, 8), _convolved(dimensions, 8, 16)])
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dimensions - 1](2)
        self.bottom = _convolved(dimensions, 16, 32)
        self.up = nn.ModuleList([_convolved(dimensions, 32 + 16, 16), _convolved(dimensions, 16 + 8, 8)])
        self.head = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](8, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for down in self.down:
            seen.append(down(x))
            x = self.pool(seen[-1])
        x = self.bottom(x)
        for up in self.up:
            beside = seen.pop()
            x = up(torch.cat([nn.functional.interpolate(x, beside.shape[2:]), beside], 1))
        return self.head(x)


class Transformer(nn.Module):
    """PyTorch's own encoder on the patches of a signal or a picture: the batch second, as is its default, or first."""

    def __init__(self, patches: nn.Module, tokens: int, *, batch_first: bool, class_token: bool) -> None:
        super().__init__()
        self.patches = patches
        self.batch_first, self.class_token = batch_first, class_token
        self.start = nn.Parameter(torch.randn(1, 1, 32) / 10)
        self.places = nn.Parameter(torch.randn(1, tokens + class_token, 32) / 2)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        tokens = x if x.ndim == 3 and x.shape[2] == 32 else x.flatten(2).transpose(1, 2)
        if self.class_token:
            tokens = torch.cat([self.start.expand(len(tokens), -1, -1), tokens], 1)
        tokens = tokens + self.places
        tokens = self.encoder(tokens) if self.batch_first else self.encoder(tokens.transpose(0, 1)).transpose(0, 1)
        return self.head(tokens[:, 0] if self.class_token else tokens.mean(1))


class CutByHand(nn.Module):
    """Patches by reshaping, then a linear layer: no convolution ever says how many rows and columns there are."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(3 * size * size, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, colours, rows, columns = x.shape
        cut = x.reshape(batch, colours, rows // self.size, self.size, columns // self.size, self.size)
        return self.linear(cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, colours * self.size**2))


class Mixed(nn.Module):
    """A block of the MLP-Mixer."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.among_tokens = nn.Sequential(nn.Linear(tokens, 48), nn.GELU(), nn.Linear(48, tokens))
        self.among_channels = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.among_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.among_channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.blocks = nn.Sequential(*(Mixed(tokens) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


CLASS = "the class token alone is read: after the last layer's attention the patches have no gradient"
STAGE = "the last stage, before the pooling"
BOTTOM = "the bottom of the U: all of the picture's context passes it"


def _hybrid() -> nn.Module:
    stem = nn.Sequential(*(_convolved(2, before, after, 2) for before, after in ((3, 8), (8, 16), (16, 32))))
    return Transformer(stem, 8 * 12, batch_first=False, class_token=False)


SPECIMENS = [
    Specimen(
        "residual network of a volume",
        "torch",
        lambda: ResNet(3, 1),
        noise(1, 1, 16, 32, 48),
        {r"stages(\.1(\.relu)?)?": (2, 4, 6)},
        r"stages\.[01].*",
        STAGE,
    ),
    Specimen(
        "residual network of an ECG",
        "torch",
        lambda: ResNet(1, 12),
        noise(1, 12, 1000),
        {r"stages(\.1(\.relu)?)?": (125,)},
        r"stages\.[01].*",
        STAGE,
    ),
    Specimen(
        "residual network of a picture and a table",
        "torch",
        WithTable,
        lambda: {"image": noise(1, 3, 64, 96)(), "table": noise(1, 4)()},
        {r"stages(\.1(\.relu)?)?": (8, 12)},
        r"stages\.[01].*",
        STAGE,
    ),
    Specimen(
        "U-Net of a picture",
        "torch",
        lambda: UNet(2, 3),
        noise(1, 3, 64, 96),
        {r"bottom(\.[012])?": (16, 24)},
        r"down\.1.*|pool|up\.0.*",
        BOTTOM,
    ),
    Specimen(
        "U-Net of a volume",
        "torch",
        lambda: UNet(3, 1),
        noise(1, 1, 16, 32, 48),
        {r"bottom(\.[012])?": (4, 8, 12)},
        r"down\.1.*|pool|up\.0.*",
        BOTTOM,
    ),
    Specimen(
        "transformer of a signal",
        "torch",
        lambda: Transformer(nn.Conv1d(12, 32, 25, 25), 40, batch_first=True, class_token=True),
        noise(1, 12, 1000),
        {r"encoder\.layers\.2(\.norm2)?": (40,)},
        r"encoder\.layers\..*",
        CLASS,
    ),
    Specimen(
        "transformer of patches cut by hand",
        "torch",
        lambda: Transformer(CutByHand(), 8 * 12, batch_first=True, class_token=True),
        noise(1, 3, 64, 96),
        {r"encoder\.layers\.2(\.norm2)?": (8, 12)},
        r"encoder\.layers\..*",
        CLASS + "; no convolution says what the grid is",
    ),
    Specimen(
        "convolutions under a transformer, the batch second",
        "torch",
        _hybrid,
        noise(1, 3, 64, 96),
        {r"encoder(\.layers\.3(\.norm2)?)?": (8, 12)},
        r"encoder\.layers\..*|patches.*",
        "the tokens themselves are averaged: the last layer's output",
    ),
    Specimen(
        "MLP-Mixer",
        "torch",
        lambda: Mixer(8 * 12),
        noise(1, 3, 64, 96),
        {r"norm|blocks(\.2)?": (8, 12)},
        r"blocks\..*",
        "the tokens themselves are averaged: the last block's output",
    ),
]
