"""open_clip: pictures and texts side by side, of small configurations of its own towers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.specimen import Grid, Specimen, noise, words

TEXT = {"context_length": 16, "vocab_size": 99, "width": 32, "heads": 2, "layers": 2}
ATTENDED = "all patches are attended to by one question of the pooling"


def _clip(vision: dict[str, Any], width: int = 32) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from open_clip.model import CLIP

        return CLIP(width, vision, TEXT)

    return build


def _siglip() -> nn.Module:
    from open_clip.model import CustomTextCLIP

    vision = {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    return CustomTextCLIP(192, vision, TEXT, init_logit_bias=-10.0)


def _asked(size: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    return lambda: (noise(1, 3, size, size)(), words(2, 16, vocabulary=99))


def _one(
    name: str, build: Callable[[], nn.Module], size: int, right: dict[str, Grid], usable: str, why: str
) -> Specimen:
    return Specimen(name, "open_clip", build, _asked(size), right, usable, why)


VIT = {"layers": 4, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 128}
RESNET = {"layers": [1, 1, 1, 2], "width": 16, "head_width": 32, "patch_size": None, "image_size": 192}
CONVNEXT = {
    "image_size": 192,
    "timm_model_name": "convnext_atto",
    "timm_model_pretrained": False,
    "timm_pool": "",
    "timm_proj": "linear",
}

SPECIMENS = [
    _one(
        "ViT (4 blocks)",
        _clip(VIT),
        128,
        {r"visual\.transformer\.resblocks\.(2|3\.ln_1)": (8, 8)},
        r"visual\.transformer\.resblocks.*",
        "the class token alone is read: after the last block's attention the patches have no gradient",
    ),
    _one(
        "ResNet (1, 1, 1, 2)",
        _clip(RESNET),
        192,
        {r"visual\.layer4(\.1(\.act3)?)?": (6, 6)},
        r"visual\.layer4.*",
        "the last stage, before the pooling by attention",
    ),
    _one(
        "SigLIP of vit_tiny",
        _siglip,
        224,
        {r"visual\.trunk\.(norm|blocks(\.11)?)": (14, 14)},
        r"visual\.trunk\.blocks\.(10|11\..*)",
        ATTENDED,
    ),
    _one(
        "ConvNeXt (atto)",
        _clip(CONVNEXT),
        192,
        {r"visual\.trunk\.(norm_pre|stages(\.3(\.blocks(\.1)?)?)?)": (6, 6)},
        r"visual\.trunk\.stages\.3.*",
        "the last stage, before the pooling",
    ),
]
