"""torchvision: networks that speak of places (segmentation, detection), and of clips."""

import functools
from typing import Any

from torch import nn

from zoo.specimen import Grid, Specimen, colours, noise

ENCODER = (
    "the encoder's end: all that is said of any place comes from it, and the decoder's own maps are already the answer"
)
TRUNK = "the deepest layer through which every detection passes: a level of the pyramid serves the boxes of one size"
SMALL = {"min_size": 256, "max_size": 320, "weights_backbone": None}
FEW = {
    "box_score_thresh": 0.0,
    "rpn_post_nms_top_n_test": 50,
    "rpn_pre_nms_top_n_test": 100,
    "box_detections_per_img": 10,
}
ANY = {"score_thresh": 0.0, "topk_candidates": 50, "detections_per_img": 10}


def _build(name: str, **options: Any) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options)


def _segments(name: str, right: dict[str, Grid], usable: str) -> Specimen:
    build = functools.partial(_build, name, weights_backbone=None, num_classes=5)
    return Specimen(name, "torchvision", build, noise(1, 3, 128, 160), right, usable, ENCODER)


def _detects(name: str, right: dict[str, Grid], usable: str, settled: str = "", **options: Any) -> Specimen:
    build = functools.partial(_build, name, **{**SMALL, **options})
    return Specimen(name, "torchvision", build, colours(1, 3, 256, 320), right, usable, TRUNK, settled=settled)


def _clips(name: str, right: dict[str, Grid], shape: tuple[int, ...], usable: str, **options: Any) -> Specimen:
    build = functools.partial(_build, name, **options)
    return Specimen(
        name, "torchvision", build, noise(1, 3, *shape), right, usable, "the last stage: time, rows, columns"
    )


def _mvit() -> nn.Module:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    widths, finer = [(32, 32), (32, 64), (64, 128), (128, 128)], [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 1, 1)]
    coarser = [(1, 4, 4), (1, 2, 2), (1, 1, 1), (1, 1, 1)]
    blocks = [
        MSBlockConfig(2 ** min(i, 2), *widths[i], (3, 3, 3), (3, 3, 3), finer[i], coarser[i])
        for i in range(len(widths))
    ]
    return MViT(
        (128, 128),
        8,
        blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
    )


LAYER4 = r"(layer4(\.2(\.relu)?)?)"

SPECIMENS = [
    _segments("deeplabv3_resnet50", {rf"backbone(\.{LAYER4})?": (16, 20)}, r"classifier\.0.*|backbone\.layer4.*"),
    _segments("deeplabv3_mobilenet_v3_large", {r"backbone(\.16(\.[012])?)?": (8, 10)}, r"classifier\.0.*"),
    _segments("fcn_resnet50", {rf"backbone(\.{LAYER4})?": (16, 20)}, r"classifier\.[0-3]|backbone\.layer4.*"),
    _segments("lraspp_mobilenet_v3_large", {r"backbone\.16(\.[012])?": (8, 10)}, r"classifier\.cbr.*"),
    _detects(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        {r"backbone\.body(\.16(\.[012])?)?": (8, 10)},
        r"backbone\.fpn.*",
        settled="both levels of its pyramid are of the trunk's own grid, and this one sums them",
        **FEW,
    ),
    _detects("fasterrcnn_resnet50_fpn", {rf"backbone\.body(\.{LAYER4})?": (8, 10)}, r"backbone\.fpn.*", **FEW),
    _detects("maskrcnn_resnet50_fpn", {rf"backbone\.body(\.{LAYER4})?": (8, 10)}, r"backbone\.fpn.*", **FEW),
    _detects("keypointrcnn_resnet50_fpn", {rf"backbone\.body(\.{LAYER4})?": (8, 10)}, r"backbone\.fpn.*", **FEW),
    _detects("retinanet_resnet50_fpn", {rf"backbone\.body(\.{LAYER4})?": (8, 10)}, r"backbone\.fpn.*", **ANY),
    _detects("fcos_resnet50_fpn", {rf"backbone\.body(\.{LAYER4})?": (8, 10)}, r"backbone\.fpn.*", **ANY),
    Specimen(
        "ssd300_vgg16",
        "torchvision",
        functools.partial(_build, "ssd300_vgg16", weights_backbone=None, score_thresh=0.0),
        colours(1, 3, 300, 300),
        {r"backbone\.features(\.2[12])?": (38, 38)},
        r"backbone\.extra\.0.*",
        TRUNK + "; VGG's end (19 x 19) misses the smallest boxes",
        settled="the backbone's end, which serves all but the smallest boxes",
    ),
    Specimen(
        "ssdlite320_mobilenet_v3_large",
        "torchvision",
        functools.partial(_build, "ssdlite320_mobilenet_v3_large", weights_backbone=None, score_thresh=0.0),
        colours(1, 3, 320, 320),
        {r"backbone\.features\.0(\.13(\.[012])?)?": (20, 20)},
        r"backbone\.features\.(0\.12.*|1.*)",
        TRUNK + "; the backbone's end (10 x 10) misses the smallest boxes",
        settled="the backbone's end, which serves all but the smallest boxes",
    ),
    _clips("r3d_18", {r"layer4(\.1(\.relu)?)?": (2, 4, 6)}, (16, 64, 96), r"layer4.*"),
    _clips("mc3_18", {r"layer4(\.1(\.relu)?)?": (8, 4, 6)}, (8, 64, 96), r"layer4.*"),
    _clips("r2plus1d_18", {r"layer4(\.1(\.relu)?)?": (2, 4, 6)}, (16, 64, 96), r"layer4.*"),
    _clips("s3d", {r"features(\.15)?": (2, 7, 7)}, (16, 224, 224), r"features\.1[45].*"),
    Specimen(
        "mvit v2 (4 blocks)",
        "torchvision",
        _mvit,
        noise(1, 3, 8, 128, 128),
        {r"blocks\.3\.norm1|blocks\.2": (4, 8, 8)},
        r"blocks\.2\..*|blocks\.1",
        "the class token alone is read: after the last block's attention the patches have no gradient",
    ),
    _clips("swin3d_t", {r"norm|features(\.6(\.1)?)?": (4, 3, 4)}, (8, 96, 128), r"features\.6.*"),
]
