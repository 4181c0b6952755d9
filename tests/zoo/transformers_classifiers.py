"""transformers: networks that name what is in a picture or a clip, from tiny configurations."""

import functools
from typing import Any

from torch import Tensor, nn

from zoo.specimen import Grid, Specimen, noise

CLASS = "the class token alone is read: after the last block's attention the patches have no gradient"
MEAN = "the patches themselves are averaged: the last block's output"
BOTH = "the class token and the mean of the patches are read: by the patches themselves, or where both meet"
STAGES = {"hidden_sizes": [8, 16, 24, 32], "num_labels": 7}
SIZE = (64, 96)
PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
    "num_labels": 7,
}
WIDE = {**PATCHES, "intermediate_size": 64}
SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "num_labels": 7}


def built(model: str, config: str, **options: Any) -> nn.Module:
    """Build a model of transformers by the names of its class and of its configuration's."""
    import transformers

    transformers.logging.set_verbosity_error()
    return getattr(transformers, model)(getattr(transformers, config)(**options))


class Headed(nn.Module):
    """A backbone whose own library gives it no head: a linear one on its class token, as people add it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = built(
            "DINOv3ViTModel", "DINOv3ViTConfig", **{**WIDE, "image_size": 64, "num_register_tokens": 4}
        )
        self.head = nn.Linear(32, 7)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.backbone(pixel_values).pooler_output)


class Clips(nn.Module):
    """A model that takes frames before colours, wrapped to take colours first, as all other networks of clips do."""

    def __init__(self) -> None:
        super().__init__()
        tubes = {**WIDE, "image_size": 64, "patch_size": 16, "num_frames": 8}
        self.model = built("VideoMAEForVideoClassification", "VideoMAEConfig", **tubes)

    def forward(self, clips: Tensor) -> Tensor:
        return self.model(clips.transpose(1, 2)).logits


def _both(config: str) -> Any:
    """Configure the picture's tower of a model of two, which are square."""
    import transformers

    tower = {**WIDE, "image_size": 64}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    return getattr(transformers, config)(vision_config=tower, text_config=text, num_labels=7)


def _tower(model: str, config: str) -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    return getattr(transformers, model)(_both(config))


def _one(
    name: str,
    right: dict[str, Grid],
    usable: str,
    why: str,
    *,
    size: tuple[int, int] = SIZE,
    classifies: str = "ForImageClassification",
    **options: Any,
) -> Specimen:
    build = functools.partial(built, f"{name}{classifies}", f"{name}Config", **options)
    return Specimen(f"{name}{classifies}", "transformers", build, noise(1, 3, *size), right, usable, why)


SPECIMENS = [
    _one("ViT", {r"vit\.layers\.(2|3\.layernorm_before)": (8, 12)}, r"vit\.layers\..*", CLASS, **WIDE),
    _one("DeiT", {r"deit\.layers\.(2|3\.layernorm_before)": (8, 12)}, r"deit\.layers\..*", CLASS, **WIDE),
    _one(
        "DeiT",
        {r"deit\.layers\.(2|3\.layernorm_before)": (8, 12)},
        r"deit\.layers\..*",
        CLASS,
        classifies="ForImageClassificationWithTeacher",
        **WIDE,
    ),
    _one("Beit", {r"beit\.(layernorm|layers\.3)": (8, 12)}, r"beit\.layers\.(2|3\..*)", MEAN, **WIDE),
    _one(
        "Swin",
        {r"swin\.(layernorm|encoder(\.layers\.1(\.blocks\.1)?)?)": (8, 12)},
        r"swin\.encoder\.layers\.1\..*",
        MEAN,
        **SWIN,
        image_size=SIZE,
    ),
    _one(
        "Swinv2",
        {r"swinv2\.(layernorm|encoder(\.layers\.1(\.blocks\.1)?)?)": (8, 12)},
        r"swinv2\.encoder\.layers\.1\..*",
        MEAN,
        **SWIN,
        image_size=SIZE,
    ),
    _one(
        "ConvNextV2",
        {r"convnextv2\.encoder(\.stages\.3(\.layers(\.0)?)?)?": (6, 8)},
        r"convnextv2\.encoder\.stages\.3.*",
        "the last stage, before the pooling",
        size=(192, 256),
        depths=[1, 1, 2, 1],
        **STAGES,
    ),
    _one(
        "ResNet",
        {r"resnet\.encoder(\.stages\.3(\.layers(\.1(\.activation)?)?)?)?": (6, 8)},
        r"resnet\.encoder\.stages\.3.*",
        "the last stage, before the pooling",
        size=(192, 256),
        embedding_size=8,
        depths=[1, 1, 1, 2],
        layer_type="basic",
        **STAGES,
    ),
    _one(
        "MobileViT",
        {r"mobilevit\.conv_1x1_exp(\.\w+)?|mobilevit\.encoder(\.layer\.4(\.fusion.*)?)?": (6, 8)},
        r"mobilevit\.encoder\.layer\.4.*",
        "the last convolution, or the stage before it: of one grid",
        size=(192, 256),
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 48],
        initializer_range=0.2,  # with its usual one, random weights shrink all signals to zero
        num_labels=7,
    ),
    _one(
        "PvtV2",
        {r"pvt_v2(\.encoder(\.layers\.3(\.layer_norm|\.blocks\.1)?)?)?": (6, 8)},
        r"pvt_v2\.encoder\.layers\.3.*",
        MEAN,
        size=(192, 256),
        depths=[1, 1, 1, 2],
        num_attention_heads=[1, 2, 2, 4],
        **STAGES,
    ),
    _one(
        "Segformer",
        {r"segformer\.stages\.3(\.layer_norm|\.blocks\.1)?": (6, 8)},
        r"segformer\.stages\.3.*",
        MEAN,
        size=(192, 256),
        depths=[1, 1, 1, 2],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=24,
        **STAGES,
    ),
    _one(
        "Dinov2",
        {r"dinov2\.(layernorm|encoder(\.layer\.[23]|\.layer\.3\.norm1)?)": (8, 12)},
        r"dinov2\.encoder\.layer\..*",
        BOTH,
        **{**PATCHES, "image_size": 56},
    ),
    _one(
        "Dinov2WithRegisters",
        {r"dinov2_with_registers\.(layernorm|encoder(\.layer\.[23]|\.layer\.3\.norm1)?)": (8, 12)},
        r"dinov2_with_registers\.encoder\.layer\..*",
        BOTH,
        **{**PATCHES, "image_size": 56},
    ),
    Specimen(
        "DINOv3ViTModel with a head",
        "transformers",
        Headed,
        noise(1, 3, *SIZE),
        {r"backbone\.model\.layer\.(2|3\.norm1)": (8, 12)},
        r"backbone\.model\.layer\..*",
        CLASS,
    ),
    Specimen(
        "SiglipForImageClassification",
        "transformers",
        functools.partial(_tower, "SiglipForImageClassification", "SiglipConfig"),
        noise(1, 3, 64, 64),
        {r"vision_model\.(post_layernorm|encoder(\.layers\.3)?)": (8, 8)},
        r"vision_model\.encoder\.layers\.(2|3\..*)",
        MEAN,
    ),
    Specimen(
        "CLIPForImageClassification",
        "transformers",
        functools.partial(_tower, "CLIPForImageClassification", "CLIPConfig"),
        noise(1, 3, 64, 64),
        {r"vision_model\.encoder(\.layers\.3)?": (8, 8)},
        r"vision_model\.encoder\.layers\.(2|3\..*)",
        MEAN,
    ),
    Specimen(
        "VideoMAEForVideoClassification, colours before frames",
        "transformers",
        Clips,
        noise(1, 3, 8, 64, 64),
        {r"model\.videomae\.encoder(\.layer\.3)?": (4, 4, 4)},
        r"model\.videomae\.encoder\.layer\.(2|3\..*)",
        MEAN + "; tubes of two frames",
    ),
]
