"""transformers: networks that speak of places (segmentation, depth, detection), from tiny configurations."""

import functools
from typing import Any

from torch import nn

from zoo.specimen import Grid, Specimen, noise

ENCODER = "the encoder's end: all that is said of any place comes from it"
JOINED = "what joins the encoder's end with its own pooled context, on the same grid"
TRUNK = "the deepest layer through which every detection passes"
STAGES = ["stage1", "stage2", "stage3", "stage4"]
VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
DETR = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 20,
    "num_labels": 7,
}


def _built(model: str, config: str, backbone: Any = None, **options: Any) -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    if backbone is not None:
        options["backbone_config"] = getattr(transformers, backbone[0])(**backbone[1])
    return getattr(transformers, model)(getattr(transformers, config)(**options))


def _maskformer() -> nn.Module:
    import transformers

    decoder = transformers.DetrConfig(**{**DETR, "encoder_layers": 0, "num_queries": 10})
    return _built(
        "MaskFormerForInstanceSegmentation",
        "MaskFormerConfig",
        SWIN,
        fpn_feature_size=32,
        mask_feature_size=32,
        decoder_config=decoder,
        num_labels=7,
    )


def _one(
    model: str,
    config: str,
    backbone: Any,
    right: dict[str, Grid],
    usable: str,
    why: str,
    *,
    size: tuple[int, int] = (192, 256),
    settled: str = "",
    **options: Any,
) -> Specimen:
    build = functools.partial(_built, model, config, backbone, **options)
    return Specimen(model, "transformers", build, noise(1, 3, *size), right, usable, why, settled=settled)


def _resnet(*stages: str) -> tuple[str, dict[str, Any]]:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 2], "layer_type": "basic"}
    return "ResNetConfig", {**sizes, "out_features": list(stages)}


SWIN = (
    "SwinConfig",
    {
        "image_size": 128,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1, 1, 1],
        "num_heads": [2, 2, 2, 2],
        "window_size": 4,
        "out_features": STAGES,
    },
)
CONVNEXT = ("ConvNextConfig", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "out_features": STAGES})
DINO = (
    "Dinov2Config",
    {**VIT, "image_size": 56, "patch_size": 14, "out_features": STAGES, "reshape_hidden_states": False},
)
RT_RESNET = ("RTDetrResNetConfig", {**_resnet("stage2", "stage3", "stage4")[1], "depths": [1, 1, 1, 1]})
C5 = r"model\.backbone\.model\.encoder\.stages\.3(\.layers(\.\d(\.activation)?)?)?"
NECK = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16}

SPECIMENS = [
    _one(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        None,
        {r"segformer\.stages\.3(\.layer_norm|\.blocks\.1)?": (6, 8)},
        r"decode_head\.(linear_fuse|batch_norm|activation)|segformer\.stages\.3.*",
        ENCODER,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 2],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=24,
        num_labels=7,
    ),
    _one(
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        CONVNEXT,
        {r"backbone\.(hidden_states_norms\.stage4|encoder(\.stages\.3(\.layers(\.0)?)?)?)": (6, 8)},
        r"decode_head\.bottleneck.*|backbone\.encoder\.stages\.3.*",
        ENCODER,
        settled=JOINED,
        hidden_size=32,
        pool_scales=[1, 2],
        auxiliary_channels=16,
        auxiliary_in_channels=24,
        num_labels=7,
    ),
    _one(
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        SWIN,
        {
            r"model\.pixel_level_module\.encoder\.(hidden_states_norms\.stage4|swin\.layernorm)": (6, 8),
            r"model\.pixel_level_module\.encoder\.swin\.encoder(\.layers\.3(\.blocks\.0)?)?": (6, 8),
        },
        r"model\.pixel_level_module\..*|model\.transformer_module\.input_projections\.\d",
        ENCODER,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=64,
        num_queries=10,
        num_labels=7,
    ),
    Specimen(
        "MaskFormerForInstanceSegmentation",
        "transformers",
        _maskformer,
        noise(1, 3, 192, 256),
        {
            r"model\.pixel_level_module\.encoder\.(hidden_states_norms\.3|model\.layernorm)": (6, 8),
            r"model\.pixel_level_module\.encoder\.model\.encoder(\.layers\.3(\.blocks\.0)?)?": (6, 8),
        },
        r"model\.pixel_level_module\..*|model\.transformer_module\.input_projection",
        ENCODER,
    ),
    _one(
        "DPTForDepthEstimation",
        "DPTConfig",
        None,
        {r"dpt\.encoder(\.layer\.3)?": (8, 8)},
        r"neck\..*|dpt\.encoder\.layer\.3.*",
        ENCODER,
        size=(128, 128),
        **VIT,
        intermediate_size=64,
        image_size=128,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        **NECK,
    ),
    _one(
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        DINO,
        {r"backbone\.(layernorm(#4)?|encoder(\.layer\.3)?)": (8, 10)},
        r"neck\..*|backbone\.encoder\.layer\.3.*",
        ENCODER,
        size=(112, 140),
        patch_size=14,
        reassemble_hidden_size=32,
        head_hidden_size=8,
        **NECK,
    ),
    _one(
        "DetrForObjectDetection",
        "DetrConfig",
        _resnet("stage4"),
        {r"model\.encoder(\.layers\.1(\.final_layer_norm)?)?": (8, 10)},
        rf"model\.input_projection|model\.encoder\..*|{C5}",
        TRUNK + ": the encoder's end, which the queries attend to",
        size=(256, 320),
        **DETR,
    ),
    _one(
        "DeformableDetrForObjectDetection",
        "DeformableDetrConfig",
        _resnet("stage2", "stage3", "stage4"),
        {rf"{C5}|model\.input_proj\.2(\.[01])?": (8, 10)},
        r"model\.input_proj.*|model\.encoder.*|model\.backbone.*stages\.[12].*",
        "the backbone's end: the encoder's tokens are of four grids, one after another",
        size=(256, 320),
        num_feature_levels=4,
        **DETR,
    ),
    _one(
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        RT_RESNET,
        {
            rf"{C5}|model\.encoder\.aifi\.0.*|model\.encoder\.lateral_convs\.0(\.\w+)?": (8, 10),
            r"model\.encoder_input_proj\.2(\.[01])?": (8, 10),
        },
        r"model\.encoder\.(fpn|pan).*|model\.(decoder|encoder)_input_proj.*",
        TRUNK,
        settled="the last of the encoder on the backbone's grid; two finer levels go past it",
        size=(256, 320),
        encoder_hidden_dim=32,
        encoder_in_channels=[16, 24, 32],
        encoder_ffn_dim=64,
        d_model=32,
        num_queries=20,
        decoder_in_channels=[32] * 3,
        decoder_layers=2,
        decoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_labels=7,
    ),
    _one(
        "YolosForObjectDetection",
        "YolosConfig",
        None,
        {r"vit\.encoder\.layer\.(2|3\.layernorm_before)": (8, 10)},
        r"vit\.encoder\.layer\..*",
        "the detection tokens alone are read: after the last block's attention the patches have no gradient",
        size=(128, 160),
        **VIT,
        intermediate_size=64,
        image_size=[128, 160],
        patch_size=16,
        num_detection_tokens=10,
        num_labels=7,
    ),
]
