"""Detections of transformers' detectors (DETR and its kin) and of its segmenters by queries (Mask2Former and its kin).

A candidate is a query: what it says of the classes, and its box, its mask, or both.
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

_BOXES = ("logits", "pred_boxes")
_MASKS = ("class_queries_logits", "masks_queries_logits")
_TOKENS = "input_ids"  # beside boxes: classes are the words of a text


def candidates_of(module: nn.Module, reader: ClassScoreReader) -> Callable[[ModelOutput], Candidates] | None:
    """Tell how a model's queries are read as detections: by the output that its forward says it returns; None for no such one."""
    parts = _parts_of_output(module)
    if parts.issuperset(_BOXES) and _TOKENS not in parts:
        return lambda answer: _boxed(reader, answer)
    return _masked if parts.issuperset(_MASKS) else None


def prefers_dense(module: nn.Module) -> bool:
    """Tell whether a class of such a model is a matter of places, though its queries are detections, too."""
    return _parts_of_output(module).issuperset(_MASKS)


def _parts_of_output(module: nn.Module) -> set[str]:
    said = inspect.signature(module.forward).return_annotation
    kinds = [kind for kind in typing.get_args(said) or (said,) if dataclasses.is_dataclass(kind)]
    return {part.name for kind in kinds for part in dataclasses.fields(kind)}


def _boxed(reader: ClassScoreReader, answer: ModelOutput) -> Candidates:
    """Read queries with a class and a box each, and a mask where there is one.

    The score is a class's probability as the model's own ``post_process_object_detection`` has it: by softmax where one logit
    more than there are classes stands for no object (DETR: Carion et al., ECCV 2020, arXiv:2005.12872), else by sigmoid, as of
    networks trained with a focal loss (Deformable DETR: Zhu et al., ICLR 2021, arXiv:2010.04159). Each query is found once, as
    its best class, while the published inference of the latter may keep it again as its second best.
    """
    logits, shares = _read(answer, _BOXES, axes=3)
    classes = reader.objects(logits)
    if reader.labels and classes.shape[-1] != reader.labels:
        raise TargetError(
            f"{answer.model} gives each query {logits.shape[-1]} logits, but its config has {reader.labels} labels, so which of "
            "them stands for no object cannot be told; set the config's id2label to the classes that the model has"
        )
    boxes = shares_to_pixels(centre_to_corners(shares), answer.input_size)
    if classes is logits:
        found = [boxes_by_logit(*one) for one in zip(logits, boxes, strict=True)]
    else:
        found = [boxes_by_score(*one) for one in zip(logits.softmax(-1)[..., :-1], boxes, strict=True)]
    masks = answer.raw.get("pred_masks")
    return Candidates(
        list(boxes),
        list(classes),
        found,
        masks=list(masks) if isinstance(masks, Tensor) and masks.ndim == 4 else None,
        levels=_alike(classes),
        uses_sigmoid=classes is logits,
        no_object=None if classes is logits else list(logits[..., -1]),
    )


def _masked(answer: ModelOutput) -> Candidates:
    """Read queries with a class and a mask each: the box of a query is that around its mask, and has no gradient.

    The score is the class's probability times the mean probability of the mask's pixels, those of a positive logit, as the
    library's own ``post_process_instance_segmentation`` has it (Mask2Former: Cheng et al., CVPR 2022, arXiv:2112.01527), at the
    size of the mask. A query without any such pixel is no detection.
    """
    classes, masks = _read(answer, _MASKS, axes=(3, 4))
    boxes = [torch.stack([_around(mask, answer.input_size) for mask in own]) for own in masks.detach()]
    return Candidates(
        boxes,
        list(classes[..., :-1]),
        [_found_masks(*one) for one in zip(classes.detach(), masks.detach(), boxes, strict=True)],
        masks=list(masks),
        levels=_alike(classes),
        no_object=list(classes[..., -1]),
    )


def _alike(queries: Tensor) -> list[Tensor]:
    """Say that all queries are read from the same: each of them attends everywhere."""
    return [torch.zeros(len(own), dtype=torch.long) for own in queries]


def _found_masks(classes: Tensor, masks: Tensor, boxes: Tensor) -> list[DetectedBox]:
    inside = (masks > 0).flatten(1)
    sure = (masks.sigmoid().flatten(1) * inside).sum(1) / inside.sum(1).clamp_min(1)
    found = boxes_by_score(classes.softmax(-1)[:, :-1] * sure[:, None], boxes)
    there = inside.any(1).tolist()
    return [one for one in found if one.candidate is not None and there[one.candidate]]


def _around(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Draw a box, in pixels, around the cells of a mask whose logits are positive; one of zeros around none."""
    rows, columns = ((mask > 0).any(axis).nonzero().flatten().to(mask.dtype) for axis in (1, 0))
    if not len(rows):
        return mask.new_zeros(4)
    edges = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return shares_to_pixels(edges / edges.new_tensor([*mask.shape[::-1]] * 2), size)


def _read(answer: ModelOutput, names: tuple[str, str], axes: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Take two tensors, image x query x ..., from an output of that many axes each."""
    raw: Any = answer.raw
    wanted = (axes, axes) if isinstance(axes, int) else axes
    one, other = (raw.get(name) if isinstance(raw, Mapping) else None for name in names)
    if (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and (one.ndim, other.ndim) == wanted
        and len(one) == answer.batch
    ):
        return one, other
    raise TargetError(
        f"no detections are found in the output of {answer.model}, a {type(raw).__name__}: it has no {' and '.join(names)} for "
        f"{answer.batch} images",
        remedy=Remedy("let the model return its own output (return_dict=True), or pass target=a callable"),
    )
