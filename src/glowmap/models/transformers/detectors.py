"""Detections of transformers' detectors (DETR and relatives) and of its segmenters with queries (Mask2Former and relatives).

A candidate is a query: its class logits with its box, its mask, or both.
"""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.errors import Remedy, TargetError
from glowmap.models.transformers.outputs import ClassScoreReader
from glowmap.outputs import (
    Candidates,
    DetectedBox,
    ModelOutput,
    boxes_by_logit,
    boxes_by_score,
    centre_to_corners,
    shares_to_pixels,
)

_BOX_FIELDS = ("logits", "pred_boxes")
_MASK_FIELDS = ("class_queries_logits", "masks_queries_logits")
_TEXT_FIELD = "input_ids"  # in the output of detectors whose classes are the words of a text


def candidates_reader(module: nn.Module, reader: ClassScoreReader) -> Callable[[ModelOutput], Candidates] | None:
    """Return the reader of a model's queries, by the output type that its forward declares; None without queries."""
    fields = _output_fields(module)
    if fields.issuperset(_BOX_FIELDS) and _TEXT_FIELD not in fields:
        return lambda output: _box_queries(reader, output)
    return _mask_queries if fields.issuperset(_MASK_FIELDS) else None


def prefers_dense(module: nn.Module) -> bool:
    """Return whether class scores are read per pixel although the queries are detections too."""
    return _output_fields(module).issuperset(_MASK_FIELDS)


def _output_fields(module: nn.Module) -> set[str]:
    declared = inspect.signature(module.forward).return_annotation
    kinds = [kind for kind in typing.get_args(declared) or (declared,) if dataclasses.is_dataclass(kind)]
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def _box_queries(reader: ClassScoreReader, output: ModelOutput) -> Candidates:
    """Read queries with class logits and a box each, and a mask where there is one.

    The score is the class probability of the model's ``post_process_object_detection``: a softmax where one logit more than there
    are classes means no object (DETR: Carion et al., ECCV 2020, arXiv:2005.12872), else a sigmoid, as of networks trained with a
    focal loss (Deformable DETR: Zhu et al., ICLR 2021, arXiv:2010.04159). Each query is listed once, as its best class; the
    published inference of the latter may list it again as its second best.
    """
    logits, shares = _read(output, _BOX_FIELDS, axes=(3, 3))
    classes = reader.objects(logits)
    if reader.labels and classes.shape[-1] != reader.labels:
        raise TargetError(
            f"{output.model} gives each query {logits.shape[-1]} logits, but its config has {reader.labels} labels, so the logit "
            "that means no object is unknown; set the config's id2label to the classes that the model has"
        )
    uses_sigmoid = classes is logits
    boxes = shares_to_pixels(centre_to_corners(shares), output.input_size)
    if uses_sigmoid:
        detections = [boxes_by_logit(*image) for image in zip(logits, boxes, strict=True)]
    else:
        probabilities = logits.softmax(-1)[..., :-1]
        detections = [boxes_by_score(*image) for image in zip(probabilities, boxes, strict=True)]
    masks = output.raw.get("pred_masks")
    return Candidates(
        list(boxes),
        list(classes),
        detections,
        masks=list(masks) if isinstance(masks, Tensor) and masks.ndim == 4 else None,
        levels=_one_level(classes),
        uses_sigmoid=uses_sigmoid,
        no_object=None if uses_sigmoid else list(logits[..., -1]),
    )


def _mask_queries(output: ModelOutput) -> Candidates:
    """Read queries with class logits and a mask each. The box of a query surrounds its mask, and has no gradient.

    The score is the class probability times the mean probability of the mask's pixels with a positive logit, as in the library's
    ``post_process_instance_segmentation`` (Mask2Former: Cheng et al., CVPR 2022, arXiv:2112.01527), at the size of the mask. A
    query without such a pixel is not a detection.
    """
    classes, masks = _read(output, _MASK_FIELDS, axes=(3, 4))
    boxes = [torch.stack([_box_around(mask, output.input_size) for mask in image]) for image in masks.detach()]
    return Candidates(
        boxes,
        list(classes[..., :-1]),
        [_detected_masks(*image) for image in zip(classes.detach(), masks.detach(), boxes, strict=True)],
        masks=list(masks),
        levels=_one_level(classes),
        no_object=list(classes[..., -1]),
    )


def _one_level(queries: Tensor) -> list[Tensor]:
    """Return level 0 for all queries, each of which attends to the whole image."""
    return [torch.zeros(len(image), dtype=torch.long) for image in queries]


def _detected_masks(classes: Tensor, masks: Tensor, boxes: Tensor) -> list[DetectedBox]:
    inside = (masks > 0).flatten(1)
    mask_scores = (masks.sigmoid().flatten(1) * inside).sum(1) / inside.sum(1).clamp_min(1)
    detections = boxes_by_score(classes.softmax(-1)[:, :-1] * mask_scores[:, None], boxes)
    has_pixels = inside.any(1).tolist()
    return [box for box in detections if box.candidate is not None and has_pixels[box.candidate]]


def _box_around(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the box, in pixels of the input, around the positive logits of a mask; zeros where there are none."""
    rows, columns = ((mask > 0).any(axis).nonzero().flatten().to(mask.dtype) for axis in (1, 0))
    if not len(rows):
        return mask.new_zeros(4)
    edges = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return shares_to_pixels(edges / edges.new_tensor([*mask.shape[::-1]] * 2), size)


def _read(output: ModelOutput, names: tuple[str, str], axes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return two fields of an output, image x query x ..., with these numbers of axes. Raises TargetError without them."""
    raw: Any = output.raw
    first, second = (raw.get(name) if isinstance(raw, Mapping) else None for name in names)
    if (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and (first.ndim, second.ndim) == axes
        and len(first) == output.batch
    ):
        return first, second
    raise TargetError(
        f"no detections are found in the output of {output.model}, a {type(raw).__name__}: it has no {' and '.join(names)} for "
        f"{output.batch} images",
        remedy=Remedy("let the model return its own output (return_dict=True), or pass target=a callable"),
    )
