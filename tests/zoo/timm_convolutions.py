"""timm: convolutional networks, and those that mix convolutions with attention but keep rows and columns."""

import functools
from typing import Any

from torch import nn

from zoo.specimen import Grid, Specimen, noise

WIDE = (192, 256)  # rows and columns differ, so that a transposed grid shows
STAGE = r"stages(\.3(\.blocks(\.{last})?)?)?"


def timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **options)


def _one(
    name: str,
    right: dict[str, Grid],
    usable: str = r"stages\.3.*",
    *,
    size: tuple[int, int] = WIDE,
    why: str = "the last stage, before the pooling",
) -> Specimen:
    return Specimen(name, "timm", functools.partial(timm_model, name), noise(1, 3, *size), right, usable, why)


def _stage(last: int, also: str = "") -> str:
    stage = STAGE.replace("{last}", str(last))
    return f"{stage}|{also}" if also else stage


SPECIMENS = [
    _one(
        "resnetv2_50x1_bit",
        {_stage(2, r"norm(\.(drop|act))?"): (6, 8)},
        why="the last stage, or the normalisation and ReLU that this pre-activation network has after it",
    ),
    _one(
        "eca_nfnet_l0",
        {r"final_act|final_conv|stages(\.3(\.2)?)?": (6, 8)},
        why="the last convolution or its activation, or the stage before it: of one grid",
    ),
    _one("nf_regnet_b0", {r"final_act|final_conv|stages(\.3(\.5)?)?": (6, 8)}),
    _one("convnextv2_atto", {_stage(1, "norm_pre"): (6, 8)}),
    _one("mambaout_femto", {_stage(2): (6, 8)}, why="the last stage, whose channels come last"),
    _one("efficientvit_b0", {_stage(2, r"head\.in_conv(\.(conv|norm|act))?"): (6, 8)}),
    _one("fastvit_t8", {_stage(1, r"final_conv(\.act)?"): (6, 8)}, r"stages\.3.*|final_conv.*"),
    _one("repvgg_a0", {r"stages(\.3(\.0(\.act)?)?)?|final_conv": (6, 8)}),
    _one("mobilenetv4_conv_small", {r"blocks(\.4(\.0(\.(aa|conv|bn1(\.(drop|act))?))?)?)?": (6, 8)}, r"blocks\.3.*"),
    _one("efficientnet_lite0", {r"bn2(\.(drop|act))?|conv_head": (6, 8)}, r"blocks(\.6.*)?"),
    _one("edgenext_xx_small", {_stage(1, "norm_pre"): (6, 8)}),
    _one("poolformer_s12", {_stage(1): (6, 8)}),
    _one("inception_next_atto", {_stage(1): (6, 8)}),
    _one("hrnet_w18_small", {r"final_layer(\.[012])?": (6, 8)}, r"downsamp_modules.*|incre_modules.*"),
    _one("dla34", {"level5": (6, 8)}, r"level5.*"),
    _one("repvit_m0_9", {_stage(1): (6, 8)}),
    _one("nextvit_small", {_stage(2, "norm"): (7, 7)}, size=(224, 224)),
    _one("gcvit_xxtiny", {_stage(1, r"stages\.3\.norm"): (7, 7)}, size=(224, 224)),
    _one(
        "maxvit_rmlp_pico_rw_256",
        {r"norm|stages(\.3(\.blocks\.\d(\.attn_grid)?|\.\d(\.attn_grid)?)?)?": (8, 8)},
        size=(256, 256),
    ),
    _one(
        "coatnet_nano_rw_224",
        {r"norm|stages(\.3(\.blocks(\.\d)?)?)?": (7, 7)},
        size=(224, 224),
        usable=r"stages\.3.*",
    ),
    _one("davit_tiny", {r"norm_pre|stages(\.3(\.blocks(\.0(\.1)?)?)?)?": (7, 7)}, size=(224, 224)),
    _one("tiny_vit_5m_224", {_stage(1): (7, 7)}, size=(224, 224)),
    _one("focalnet_tiny_srf", {r"norm|layers(\.3(\.blocks(\.1)?)?)?": (6, 8)}, r"layers\.3.*"),
    _one("visformer_tiny", {r"norm|stage3(\.3)?": (7, 7)}, r"stage3.*", size=(224, 224)),
]
