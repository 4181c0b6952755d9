"""timm: transformers, of one class token, of many tokens before the patches, or of none."""

import functools
from typing import Any

from zoo.specimen import Grid, Specimen, noise, warmed
from zoo.timm_convolutions import timm_model

CLASS = "the class token alone is read: after the last block's attention the patches have no gradient"
MEAN = "the patches themselves are averaged: the last block's output"
ATTENDED = "the patches' last block; the class-attention blocks after it only read them"
TINY = {"embed_dim": 192, "num_heads": 3}


def _one(
    name: str,
    right: dict[str, Grid],
    usable: str,
    *,
    why: str,
    settled: str = "",
    size: tuple[int, int] = (224, 224),
    called: str = "",
    **options: Any,
) -> Specimen:
    build = functools.partial(timm_model, name, **options)
    return Specimen(called or name, "timm", build, noise(1, 3, *size), right, usable, why, settled=settled)


def _class(name: str, depth: int, grid: Grid, /, **options: Any) -> Specimen:
    """Read one of those whose class token asks the patches for the last time in the last block."""
    right = rf"blocks\.{depth - 1}\.norm1|blocks\.{depth - 2}"
    return _one(name, {right: grid}, r"blocks\.\d+(\.norm\d|\.drop_path\d|\.mlp.*)?", why=CLASS, **options)


def _mean(name: str, depth: int, grid: Grid, /, **options: Any) -> Specimen:
    right = rf"norm|blocks(\.{depth - 1})?"
    return _one(name, {right: grid}, rf"blocks\.({depth - 1}\..*|{depth - 2})", **{"why": MEAN, **options})


SPECIMENS = [
    _class("vit_tiny_patch16_224", 12, (14, 14)),
    _class("vit_tiny_patch16_224", 12, (10, 18), size=(160, 288), img_size=(160, 288), called="vit_tiny, 160 x 288"),
    _class(
        "vit_small_patch14_reg4_dinov2",
        12,
        (14, 18),
        size=(196, 252),
        img_size=(196, 252),
        called="vit_small_patch14_reg4_dinov2, 196 x 252",
    ),
    _class("deit_tiny_distilled_patch16_224", 12, (14, 14)),
    _class("convit_tiny", 12, (14, 14)),
    _mean("vit_tiny_patch16_224", 12, (14, 14), global_pool="avg", called="vit_tiny_patch16_224, averaged"),
    _mean("vit_wee_patch16_reg1_gap_256", 14, (16, 16), size=(256, 256)),
    _mean("vit_medium_patch16_reg4_gap_256", 12, (16, 16), size=(256, 256)),
    _mean("beit_base_patch16_224", 6, (14, 14), depth=6, called="beit (6 blocks)", **TINY),
    _mean("eva02_tiny_patch14_224", 12, (16, 16)),
    _mean("vit_small_patch16_dinov3", 12, (14, 14)),
    _mean(
        "vit_base_patch16_siglip_224",
        4,
        (14, 14),
        depth=4,
        called="siglip (4 blocks)",
        why="one learned question attends to the last block's normalised patches",
        **TINY,
    ),
    _mean("naflexvit_base_patch16_gap", 4, (14, 14), depth=4, called="naflexvit (4 blocks)", **TINY),
    _one(
        "samvit_base_patch16_224",
        {r"neck(\.[0-3])?|blocks(\.5)?": (14, 14)},
        r"blocks\.5.*",
        why="rows and columns are kept, channels last; the neck after the blocks is of the same grid",
        depth=6,
        called="samvit (6 blocks)",
        **TINY,
    ),
    _mean("mixer_s16_224", 8, (14, 14)),
    _mean("resmlp_12_224", 12, (14, 14)),
    _mean(
        "hiera_tiny_224", 12, (7, 7), why=MEAN + "; earlier stages hold their tokens window by window, not row by row"
    ),
    _one(
        "cait_xxs24_224", {r"blocks(\.23)?": (14, 14)}, r"blocks_token_only\.[01](\.norm1)?|blocks\.\d+", why=ATTENDED
    ),
    _one(
        "xcit_nano_12_p16_224",
        {r"blocks(\.11)?": (14, 14)},
        r"cls_attn_blocks\.[01](\.norm1)?|blocks\.\d+",
        why=ATTENDED,
    ),
    _one(
        "volo_d1_224",
        {r"network\.4(\.1)?": (14, 14)},
        r"post_network\.[01](\.norm1)?|network\.4.*",
        why=ATTENDED,
        settled="the class-attention block hands the patches on as they are: of the same values as the best",
    ),
    _one("pvt_v2_b0", {r"stages(\.3(\.norm|\.blocks(\.1)?)?)?": (6, 8)}, r"stages\.3.*", why=MEAN, size=(192, 256)),
    _one("swin_tiny_patch4_window7_224", {r"norm|layers(\.3(\.blocks(\.1)?)?)?": (7, 7)}, r"layers\.3.*", why=MEAN),
    _one(
        "swinv2_tiny_window8_256",
        {r"norm|layers(\.3(\.blocks(\.1)?)?)?": (8, 8)},
        r"layers\.3.*",
        why=MEAN,
        size=(256, 256),
    ),
    _one("twins_svt_small", {r"norm|blocks\.3(\.3)?": (7, 7)}, r"blocks\.3\..*", why=MEAN),
    _one("mvitv2_tiny", {r"norm|stages\.3(\.blocks\.1)?": (7, 7)}, r"stages\.3\..*", why=MEAN),
    _one(
        "efficientformer_l1",
        {r"norm|stages(\.3(\.blocks(\.4)?)?)?": (7, 7)},
        r"stages\.3\..*",
        why=MEAN + ", flattened to tokens within the last stage",
    ),
    Specimen(
        "levit_128s",
        "timm",
        warmed(functools.partial(timm_model, "levit_128s"), 8, 3, 224, 224),
        noise(1, 3, 224, 224),
        {r"stages(\.2(\.blocks(\.3)?)?)?": (4, 4)},
        r"stages\.2\..*|stages\.1(\.blocks.*)?",
        MEAN + "; the stage before is finer",
    ),
    _one("nest_tiny", {r"norm|levels(\.2)?": (14, 14)}, r"levels\.2\..*", why=MEAN),
    _one(
        "coat_lite_tiny",
        {r"serial_blocks4\.1\.(norm1|cpe)|serial_blocks4\.0|cpe4": (7, 7)},
        r"serial_blocks4.*",
        why=CLASS,
    ),
    _one(
        "crossvit_9_240",
        {
            r"blocks\.2\.(blocks\.0(\.0)?|fusion\.1\.norm1)": (20, 20),
            r"blocks\.2\.(blocks\.1(\.[0-2])?|fusion\.0\.norm1)": (14, 14),
        },
        r"blocks\.[12]\..*",
        why="two branches, each read by the other's class token: the last block of one",
    ),
    _one(
        "tnt_s_patch16_224",
        {r"blocks\.11\.norm_out|blocks\.10": (14, 14)},
        r"blocks\.\d+.*",
        why=CLASS + "; the tokens within a patch are no grid of the picture's",
    ),
    _one("pit_ti_224", {r"transformers\.2\.blocks\.(3\.norm1|2)": (7, 7)}, r"transformers\.2\.blocks.*", why=CLASS),
]
