"""ultralytics' detectors and classifiers, when somebody brings one; none is built here by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.errors import ModelError, Remedy, TargetError
from glowmap.models._family import FAMILIES, Family, is_of, library, names_in_order
from glowmap.models.model import Model
from glowmap.models.preprocessing import ResizedAndNormalised
from glowmap.outputs import (
    Candidates,
    DetectedBox,
    ModelOutput,
    OutputReaders,
    boxes_by_logit,
    centre_to_corners,
    detected_boxes,
    shares_to_pixels,
)
from glowmap.outputs import read_logits as read_plain

_KEPT = 300


def yolo_boxes(
    *,
    objectness: bool = False,
    channels_first: bool | None = None,
    probabilities: bool = True,
    overlap: float = 0.45,
) -> Callable[[ModelOutput], Candidates]:
    """Tell how detections are read from a tensor of boxes: for a module of your own that answers as a YOLO does.

    ``glowmap.load(module).with_readers(candidates=yolo_boxes(objectness=True))`` reads images x boxes x (4 + 1 + classes), as
    YOLOv5 and YOLOX answer; without ``objectness``, images x (4 + classes) x boxes, as YOLOv8 is exported. ``channels_first``
    tells the order of the last two axes where it is another. The first four are x and y of the centre, width and height in the
    pixels of the input; objectness and classes are ``probabilities``, or else their logits. What is found is what suppression
    leaves: among boxes of one class that overlap (IoU) by more than ``overlap``, the surest, where the score is the class's
    probability times that of an object. The answer is the tensor, or the first of a tuple.

    Raises TargetError for an ``overlap`` outside 0 to 1, and where such an answer is another; MissingExtra without torchvision.
    """
    if not 0 <= overlap <= 1:
        raise TargetError(f"an overlap of {overlap} is no share; give one from 0 to 1, such as 0.45")
    first = not objectness if channels_first is None else channels_first
    return partial(_read, objectness, first, probabilities, overlap)


def _read(
    objectness: bool, channels_first: bool, probabilities: bool, overlap: float, answer: ModelOutput
) -> Candidates:
    rows = _rows(answer, 4 + objectness, channels_first)
    logits = torch.logit(rows[..., 4:], torch.finfo(rows.dtype).eps) if probabilities else rows[..., 4:]
    boxes, classes = centre_to_corners(rows[..., :4]), logits[..., objectness:]
    sure = classes.detach().sigmoid() * (logits[..., :1].detach().sigmoid() if objectness else 1)
    return Candidates(
        list(boxes),
        list(classes),
        [_left(*one, overlap) for one in zip(boxes.detach(), sure, strict=True)],
        objectness=list(logits[..., 0]) if objectness else None,
        is_anchored=True,
        uses_sigmoid=True,
    )


def _rows(answer: ModelOutput, before: int, channels_first: bool) -> Tensor:
    """Take images x boxes x columns from the answer, with as many columns as there are class names, and ``before`` them."""
    raw: Any = answer.raw[0] if isinstance(answer.raw, tuple | list) and answer.raw else answer.raw
    fits = isinstance(raw, Tensor) and raw.ndim == 3 and len(raw) == answer.batch and raw.is_floating_point()
    rows: Tensor = raw.transpose(1, 2) if fits and channels_first else raw
    named = len(answer.class_names) if answer.class_names is not None else None
    if fits and rows.shape[2] > before and named in (None, rows.shape[2] - before):
        return rows
    came = f"a tensor of {' x '.join(map(str, raw.shape))}" if isinstance(raw, Tensor) else f"a {type(raw).__name__}"
    columns = f"({before} + {'classes' if named is None else named})"
    wanted = f"{answer.batch} x {columns} x boxes" if channels_first else f"{answer.batch} x boxes x {columns}"
    raise TargetError(
        f"{answer.model} answered with {came}, where yolo_boxes was to read {wanted}; say objectness=... and channels_first=... "
        "as the module has it, or give as many class names as there are classes"
    )


def _left(boxes: Tensor, scores: Tensor, overlap: float) -> list[DetectedBox]:
    """List what non-maximum suppression leaves of each class, the surest first; each box is of its best class."""
    ops = library("torchvision.ops", "torchvision", "what a detector found among its boxes")
    best, categories = scores.max(1)
    compared = best.argsort(descending=True, stable=True)[:_COMPARED]
    kept = compared[ops.batched_nms(boxes[compared], best[compared], categories[compared], overlap)[:_KEPT]]
    return detected_boxes(kept, categories[kept], best[kept], boxes[kept])


_COMPARED = 1000  # boxes an image, the surest, that its suppression compares


def names() -> Sequence[str]:
    """List what is built by name: nothing, as the library's licence is not ours to choose for others."""
    return []


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Say how to bring such a model."""
    raise ModelError(f"no model {name!r} is built by name; write a FILE.py:factory that returns YOLO(...).model")


def recognise(module: nn.Module) -> Model | None:
    """Know a model by its class; it knows the names of its classes, and its detectors take RGB in [0, 1]."""
    if not is_of(module, "ultralytics") or not hasattr(module, "names"):
        return None
    classifies = type(module).__name__ == "ClassificationModel"
    classes = names_in_order(module.names)
    stride = getattr(module, "stride", None)
    preprocess = None if classifies else ResizedAndNormalised(multiple=int(stride.max()) if stride is not None else 32)
    return Model(
        module,
        type(module).__name__,
        preprocess,
        classes,
        readers=OutputReaders(_class_logits if classifies else read_detections, _candidates_of(module)),
    )


def unwrapped(model: Any) -> Any:
    """Take the network out of a ``YOLO(...)`` object; anything else stays as it is."""
    if not any(cls.__module__ == "ultralytics.engine.model" for cls in type(model).__mro__):
        return model
    if not isinstance(model.model, nn.Module):
        raise ModelError(f"this {type(model).__name__} is an exported network, which has no layers; load its .pt file")
    return model.model


def _class_logits(output: Any) -> Tensor:
    """Read image x class: a classifier answers with probabilities and the logits they came from."""
    return read_plain(output[1] if isinstance(output, tuple | list) and len(output) == 2 else output)


def read_detections(output: Any) -> Tensor:
    """Read image x class: the highest logit of each class over all places where a box may be.

    The raw scores, of which detections are chosen later, are read from the head whose boxes the model uses.
    """
    scores: Tensor = _raw(output)[1]["scores"]  # image x class x place
    return scores.amax(2)


def _raw(output: Any) -> tuple[Tensor | None, Mapping[str, Any], bool]:
    """Find the boxes as the model gives them, the raw scores of the head that they come from, and whether it chose among them.

    Boxes are image x (4 + class + ...) x place, or image x box x (6 + ...) where it chose.
    """
    raw = output[1] if isinstance(output, tuple | list) and len(output) > 1 else output
    decoded = None if raw is output else output[0]
    decoded = decoded[0] if isinstance(decoded, tuple | list) else decoded  # a head with masks puts their basis beside
    chosen = False
    if isinstance(raw, Mapping) and "one2one" in raw and decoded is not None:
        _, classes, places = raw["one2many"]["scores"].shape
        chosen = not (decoded.shape[2] == places and decoded.shape[1] >= 4 + classes)  # a row a chosen box
        raw = raw["one2one" if chosen else "one2many"]
    if not isinstance(raw, Mapping) or "scores" not in raw:
        raise TargetError(
            "no raw class scores are found in this detector's output, as ultralytics 8.4 gives them",
            remedy=Remedy("pass target=a callable from the output to one score per image"),
        )
    return decoded, raw, chosen


def _candidates_of(module: Any) -> Callable[[ModelOutput], Candidates] | None:
    """Tell how a model's detections are read, by its last layer; None where that is no head of detections."""
    head = module.model[-1] if isinstance(getattr(module, "model", None), nn.Sequential) else None
    kinds = {cls.__name__ for cls in type(head).__mro__}
    if "RTDETRDecoder" in kinds:
        return _queries
    return partial(_places, head) if "Detect" in kinds else None


def _places(head: Any, answer: ModelOutput) -> Candidates:
    """Read a YOLO head: a candidate is a cell of one of its levels, level after level.

    The boxes are decoded by the head itself. What is found is what the library's own non-maximum suppression leaves, with the
    overlap that it has by default but no least score; of a head that chooses by itself, what it chose.
    """
    decoded, raw, chosen = _raw(answer.raw)
    if decoded is None:
        raise TargetError(
            f"{answer.model} gave no boxes, as ultralytics' detectors do while they train; bring it as it predicts: model.eval()"
        )
    count = raw["scores"].shape[1]
    if chosen:
        own = head._get_decode_boxes(raw)
        boxes = own.transpose(1, 2) if "angle" not in raw else _upright(own, raw["angle"])
        found = _kept_by(head, raw["scores"].detach(), boxes)
    else:
        own = decoded[:, :4]
        boxes = centre_to_corners(own.transpose(1, 2)) if "angle" not in raw else _upright(own, raw["angle"])
        found = _left_by_suppression(decoded.detach(), count, boxes, rotated="angle" in raw)
    cells = torch.tensor([math.prod(maps.shape[-2:]) for maps in raw["feats"]])
    levels = [torch.arange(len(cells)).repeat_interleave(cells)] * answer.batch
    return Candidates(
        list(boxes), list(raw["scores"].transpose(1, 2)), found, is_anchored=True, levels=levels, uses_sigmoid=True
    )


def _upright(turned: Tensor, angle: Tensor) -> Tensor:
    """Draw upright boxes, image x place x 4, around turned ones (x, y, width, height) of such an angle."""
    cos, sin = angle.cos().abs(), angle.sin().abs()
    width, height = turned[:, 2:3], turned[:, 3:4]
    around = torch.cat([turned[:, :2], width * cos + height * sin, width * sin + height * cos], 1)
    return centre_to_corners(around.transpose(1, 2))


def _left_by_suppression(decoded: Tensor, classes: int, boxes: Tensor, *, rotated: bool) -> list[list[DetectedBox]]:
    from ultralytics.utils import DEFAULT_CFG, nms  # which whoever brought the model has imported

    kept, places = nms.non_max_suppression(
        decoded,
        0.0,
        DEFAULT_CFG.iou,
        nc=classes,
        max_det=DEFAULT_CFG.max_det,
        max_nms=_COMPARED,
        rotated=rotated,
        return_idxs=True,
    )
    return [
        detected_boxes(at.flatten().long(), rows[:, 5], rows[:, 4], boxes[image][at.flatten().long()])
        for image, (rows, at) in enumerate(zip(kept, places, strict=True))
    ]


def _kept_by(head: Any, logits: Tensor, boxes: Tensor) -> list[list[DetectedBox]]:
    scores, categories, places = head.get_topk_index(logits.transpose(1, 2).sigmoid(), head.max_det)
    each = zip(places, categories.flatten(1), scores.flatten(1), boxes, strict=True)
    return [detected_boxes(at, kinds, sure, own[at]) for at, kinds, sure, own in each]


def _queries(answer: ModelOutput) -> Candidates:
    """Read the queries of ultralytics' RT-DETR: each is found once, as its best class (the library may keep it twice)."""
    raw = answer.raw[1] if isinstance(answer.raw, tuple | list) and len(answer.raw) == 2 else answer.raw
    if not isinstance(raw, tuple | list) or len(raw) < 2:
        raise TargetError(
            f"no raw boxes and scores are found in the output of {answer.model}, as ultralytics 8.4 gives them",
            remedy=Remedy("pass target=a callable from the output to one score per image"),
        )
    logits = raw[1][-1]
    boxes = shares_to_pixels(centre_to_corners(raw[0][-1]), answer.input_size)
    return Candidates(
        list(boxes),
        list(logits),
        [boxes_by_logit(*one) for one in zip(logits, boxes, strict=True)],
        uses_sigmoid=True,
    )


FAMILIES.register("ultralytics", Family("ultralytics", names, build, recognise))
