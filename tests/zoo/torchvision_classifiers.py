"""torchvision: networks that name what is in a picture."""

import functools
from typing import Any

from torch import nn

from zoo.specimen import Grid, Specimen, noise

WIDE = (192, 256)  # rows and columns differ, so that a transposed grid shows


def _build(name: str, **options: Any) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options)


def _vit() -> nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=6, num_heads=3, hidden_dim=192, mlp_dim=384
    )


def _one(
    name: str,
    right: dict[str, Grid],
    *,
    size: tuple[int, int] = WIDE,
    usable: str = "",
    why: str = "the last stage, before the pooling",
    settled: str = "",
    **options: Any,
) -> Specimen:
    return Specimen(
        name,
        "torchvision",
        functools.partial(_build, name, **options),
        noise(1, 3, *size),
        right,
        usable,
        why,
        settled=settled,
    )


SPECIMENS = [
    _one("resnet18", {r"layer4(\.1(\.relu)?)?": (6, 8)}, usable=r"layer4\.(0|1\.(conv2|bn2))(\.\w+)?"),
    _one("resnet50", {r"layer4(\.2(\.relu)?)?": (6, 8)}, usable=r"layer4\.([01]|2\.(conv3|bn3))(\.\w+)?"),
    _one(
        "vgg11",
        {r"features\.1[89]": (12, 16)},
        usable=r"features(\.20)?",
        why="the last convolution or its ReLU: the paper's own layer; what is after the max-pooling is half as fine",
    ),
    _one(
        "alexnet",
        {r"features\.1[01]": (11, 15)},
        usable=r"features(\.12)?",
        why="the last convolution or its ReLU; what is after the max-pooling is half as fine",
    ),
    _one(
        "densenet121",
        {r"features(\.norm5)?": (6, 8)},
        usable=r"features\.denseblock4.*",
        settled="a normalisation alone lies between it and the best: the same channels at the same places",
    ),
    _one(
        "inception_v3",
        {"Mixed_7c": (8, 8)},
        size=(299, 299),
        usable=r"Mixed_7[bc](\..*)?",
        why="the last block joins its branches: one branch alone has a part of the channels",
        init_weights=False,
    ),
    _one("googlenet", {"inception5b": (6, 8)}, usable=r"inception5[ab](\..*)?", init_weights=False),
    _one(
        "squeezenet1_1",
        {r"features(\.12)?": (11, 15)},
        usable=r"classifier\.[012]",
        why="the last Fire module; the convolution after it already is one map a class",
    ),
    _one("efficientnet_b0", {r"features(\.8(\.[012])?)?": (6, 8)}, usable=r"features\.7.*"),
    _one("mobilenet_v2", {r"features(\.18(\.[012])?)?": (6, 8)}, usable=r"features\.17.*"),
    _one("mobilenet_v3_small", {r"features(\.12(\.[012])?)?": (6, 8)}, usable=r"features\.11.*"),
    _one(
        "regnet_y_400mf",
        {r"trunk_output(\.block4(\.block4-\d+(\.activation)?)?)?": (6, 8)},
        usable=r"trunk_output\.block4.*",
    ),
    _one("shufflenet_v2_x0_5", {r"conv5(\.[012])?": (6, 8)}, usable=r"stage4.*"),
    _one("mnasnet0_5", {r"layers(\.1[456])?": (6, 8)}, usable=r"layers\.13.*"),
    _one("convnext_tiny", {r"features(\.7(\.2)?)?": (6, 8)}, usable=r"features\.7.*"),
    Specimen(
        "vit (6 blocks)",
        "torchvision",
        _vit,
        noise(1, 3, 224, 224),
        {r"encoder\.layers\.encoder_layer_(5\.ln_1|4)": (14, 14)},
        usable=r"encoder\.layers\.encoder_layer_([0-3]|4\.ln_1)",
        why="the class token alone is read: after the last block's attention the patches have no gradient",
    ),
    _one("swin_t", {r"norm|permute|features(\.7(\.1)?)?": (6, 8)}, usable=r"features\.7.*"),
    _one("swin_v2_t", {r"norm|permute|features(\.7(\.1)?)?": (6, 8)}, usable=r"features\.7.*"),
    _one(
        "maxvit_t",
        {r"blocks\.3(\.layers\.1(\.layers(\.grid_attention)?)?)?": (7, 7)},
        size=(224, 224),
        usable=r"blocks\.3.*",
    ),
]
