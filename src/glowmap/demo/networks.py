"""The demo's networks: narrow versions of common architectures, built from torchvision's parts."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from glowmap.errors import MissingExtra

_WIDTHS, _BLOCKS = (16, 32, 48, 64), (1, 2, 2, 2)


def segmenter(classes: int) -> nn.Module:
    """Build a DeepLabV3 on a narrow ResNet: ``backbone.layer1`` to ``layer4``; it returns ``{"out": logits}``.

    The strides are 2, 4, 4 and 4, with dilation in the last two layers. The head is DeepLab's, 48 channels wide instead of 256.
    """
    models = _models()
    backbone = _resnet(models, _BLOCKS, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    deeplab = models.segmentation.deeplabv3
    channels, width = _channels(models), 48
    head = nn.Sequential(
        deeplab.ASPP(channels, (4, 8), width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, classes, 1),
    )
    features = models._utils.IntermediateLayerGetter(backbone, {"layer4": "out"})
    module: nn.Module = deeplab.DeepLabV3(features, head)
    return module


def classifier(classes: int) -> nn.Module:
    """Build a narrow ResNet with ``layer1`` to ``layer4`` at strides 2, 4, 8 and 8, average pooling and one linear layer."""
    models = _models()
    body = _resnet(models, (1, 1, 1, 1), strides=(1, 2, 2, 1), dilations=(1, 1, 1, 1))
    for name, part in (
        ("avgpool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(_channels(models), classes)),
    ):
        body.add_module(name, part)
    return body


def _resnet(models: Any, blocks: Sequence[int], *, strides: Sequence[int], dilations: Sequence[int]) -> nn.Sequential:
    stem = [("conv1", nn.Conv2d(3, 16, 5, 2, 2, bias=False)), ("bn1", nn.BatchNorm2d(16)), ("relu", nn.ReLU(True))]
    stages, channels = [], 16
    for number, (width, count, stride, dilation) in enumerate(zip(_WIDTHS, blocks, strides, dilations, strict=True), 1):
        stages.append(
            (
                f"layer{number}",
                _stage(models.resnet.Bottleneck, channels, width, count, stride=stride, dilation=dilation),
            )
        )
        channels = width * models.resnet.Bottleneck.expansion
    return nn.Sequential(OrderedDict([*stem, *stages]))


def _stage(block: Any, channels: int, width: int, count: int, *, stride: int, dilation: int) -> nn.Sequential:
    wide = width * block.expansion
    shortcut = nn.Sequential(nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
    first = block(channels, width, stride, shortcut, dilation=dilation)
    return nn.Sequential(first, *(block(wide, width, dilation=dilation) for _ in range(count - 1)))


def _channels(models: Any) -> int:
    return int(_WIDTHS[-1] * models.resnet.Bottleneck.expansion)


def _models() -> Any:
    try:
        import torchvision
    except ImportError:
        raise MissingExtra("torchvision", "torchvision", "the demo's models") from None
    return torchvision.models
