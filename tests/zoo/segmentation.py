"""segmentation_models_pytorch: an encoder of one's choice under a decoder of one's choice."""

import functools
from typing import Any

from torch import nn

from zoo.specimen import Grid, Specimen, noise

ENCODER = "the encoder's end: all that is said of any place comes from it"


def _built(architecture: str, encoder: str, **options: Any) -> nn.Module:
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, architecture)(encoder, encoder_weights=None, classes=5, **options)


def _one(
    architecture: str,
    right: dict[str, Grid],
    *,
    encoder: str = "resnet18",
    size: tuple[int, int] = (192, 256),
    why: str = ENCODER,
    usable: str = r"encoder\.layer4.*",
    settled: str = "",
) -> Specimen:
    name = architecture if encoder == "resnet18" else f"{architecture} of {encoder}"
    build = functools.partial(_built, architecture, encoder)
    return Specimen(name, "segmentation_models_pytorch", build, noise(1, 3, *size), right, usable, why, settled=settled)


LAYER4 = r"encoder(\.layer4(\.1(\.relu)?)?)?"

SPECIMENS = [
    _one("Unet", {LAYER4: (6, 8)}),
    _one(
        "Unet",
        {r"encoder(\.features(\.18(\.[012])?)?)?": (6, 8)},
        encoder="mobilenet_v2",
        usable=r"encoder\.features.*",
    ),
    _one("UnetPlusPlus", {LAYER4: (6, 8)}),
    _one("FPN", {LAYER4: (6, 8)}),
    _one(
        "PSPNet",
        {r"encoder(\.layer2(\.1(\.relu)?)?)?": (24, 32)},
        usable=r"encoder\.layer2.*|decoder\.(psp.*|conv.*)",
        why=ENCODER + ", which is its second stage here",
    ),
    _one("DeepLabV3", {LAYER4: (24, 32)}, usable=r"encoder\.layer4.*|decoder\..*"),
    _one("DeepLabV3Plus", {LAYER4: (12, 16)}, usable=r"encoder\.layer4.*|decoder\.aspp.*"),
    _one("MAnet", {LAYER4: (6, 8)}, usable=r"encoder\.layer4.*|decoder\.center.*"),
    _one("Linknet", {LAYER4: (6, 8)}),
    _one("PAN", {LAYER4: (12, 16)}, usable=r"encoder\.layer4.*|decoder\.fpa.*"),
    _one(
        "Segformer",
        {r"encoder(\.(norm4|block4(\.1)?))?": (6, 8)},
        encoder="mit_b0",
        usable=r"encoder\.(block4|patch_embed4).*|decoder\.mlp_stage\.0.*",
    ),
    _one(
        "UPerNet",
        {r"encoder(\.model(\.stages_3(\.blocks(\.1)?)?)?)?": (6, 8)},
        encoder="tu-convnext_atto",
        usable=r"encoder\.model\.stages_3.*|decoder\.psp.*",
        settled="what joins the encoder's end with its own pooled context, on the same grid",
    ),
    _one(
        "DPT",
        {r"encoder\.model\.(norm|blocks(\.11)?)": (14, 14)},
        encoder="tu-vit_tiny_patch16_224",
        size=(224, 224),
        usable=r"encoder\.model\.blocks\..*|decoder\..*",
        settled="of this tiny transformer's model the decoder is the greater part, and is read on its coarsest grid",
    ),
]
