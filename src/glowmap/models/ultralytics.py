"""ultralytics' detectors and classifiers, as modules; none is built by name, because of the library's licence."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.errors import ModelError, Remedy, TargetError
from glowmap.models._family import FAMILIES, Family, import_library, is_from, ordered_names
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
from glowmap.outputs import read_logits as read_class_scores
from glowmap.shapes import crossed

_MOST_COMPARED = 1000  # boxes an image, by falling score, that suppression compares
_MOST_DETECTED = 300


def yolo_boxes(
    *,
    objectness: bool = False,
    channels_first: bool | None = None,
    probabilities: bool = True,
    overlap: float = 0.45,
) -> Callable[[ModelOutput], Candidates]:
    """Return a reader of detections for a module whose output is a tensor of boxes, as of a YOLO.

    ``glowmap.load(module).with_readers(candidates=yolo_boxes(objectness=True))`` reads images x boxes x (4 + 1 + classes), the
    output of YOLOv5 and YOLOX; without ``objectness``, images x (4 + classes) x boxes, as YOLOv8 is exported.
    ``channels_first`` overrules the order of the last two axes. The first four values are x and y of the centre, width and
    height in pixels of the input; objectness and classes are ``probabilities``, or else logits. The output is the tensor, or the
    first of a tuple.

    The detections are those that non-maximum suppression keeps: among boxes of one class with an ``overlap`` (IoU) above this,
    the one with the highest score, which is the class probability times the objectness.

    Raises TargetError for an ``overlap`` outside 0 to 1, and later for an output of another shape; MissingExtra without
    torchvision.
    """
    if not 0 <= overlap <= 1:
        raise TargetError(f"an overlap of {overlap} is not a share; give one from 0 to 1, such as 0.45")
    is_channels_first = not objectness if channels_first is None else channels_first
    return partial(_read_boxes, objectness, is_channels_first, probabilities, overlap)


def _read_boxes(
    has_objectness: bool, channels_first: bool, are_probabilities: bool, overlap: float, output: ModelOutput
) -> Candidates:
    rows = _rows(output, 4 + has_objectness, channels_first)
    logits = torch.logit(rows[..., 4:], torch.finfo(rows.dtype).eps) if are_probabilities else rows[..., 4:]
    boxes, classes = centre_to_corners(rows[..., :4]), logits[..., has_objectness:]
    scores = classes.detach().sigmoid() * (logits[..., :1].detach().sigmoid() if has_objectness else 1)
    return Candidates(
        list(boxes),
        list(classes),
        [_suppressed(*image, overlap) for image in zip(boxes.detach(), scores, strict=True)],
        objectness=list(logits[..., 0]) if has_objectness else None,
        is_anchored=True,
        uses_sigmoid=True,
    )


def _rows(output: ModelOutput, before_classes: int, channels_first: bool) -> Tensor:
    """Return images x boxes x columns: ``before_classes`` columns, then one for each class name."""
    raw: Any = output.raw[0] if isinstance(output.raw, tuple | list) and output.raw else output.raw
    fits = isinstance(raw, Tensor) and raw.ndim == 3 and len(raw) == output.batch and raw.is_floating_point()
    rows: Tensor = raw.transpose(1, 2) if fits and channels_first else raw
    class_count = len(output.class_names) if output.class_names is not None else None
    if fits and rows.shape[2] > before_classes and class_count in (None, rows.shape[2] - before_classes):
        return rows
    returned = f"a tensor of {crossed(raw.shape)}" if isinstance(raw, Tensor) else f"a {type(raw).__name__}"
    columns = f"({before_classes} + {'classes' if class_count is None else class_count})"
    wanted = f"{output.batch} x {columns} x boxes" if channels_first else f"{output.batch} x boxes x {columns}"
    raise TargetError(
        f"{output.model} returned {returned}, where yolo_boxes expects {wanted}; set objectness=... and channels_first=... as "
        "the module has it, or give as many class names as there are classes"
    )


def _suppressed(boxes: Tensor, scores: Tensor, overlap: float) -> list[DetectedBox]:
    """Return the boxes, each as its best class, that non-maximum suppression keeps of each class, by falling score."""
    ops = import_library("torchvision.ops", "torchvision", "non-maximum suppression of a detector's boxes")
    best, categories = scores.max(1)
    order = best.argsort(descending=True, stable=True)[:_MOST_COMPARED]
    kept = order[ops.batched_nms(boxes[order], best[order], categories[order], overlap)[:_MOST_DETECTED]]
    return detected_boxes(kept, categories[kept], best[kept], boxes[kept])


def recognise(module: nn.Module) -> Model | None:
    """Recognise a model by its class. It has class names, and its detectors take RGB in [0, 1]."""
    if not is_from(module, "ultralytics") or not hasattr(module, "names"):
        return None
    is_classifier = type(module).__name__ == "ClassificationModel"
    stride = getattr(module, "stride", None)
    multiple = int(stride.max()) if stride is not None else 32
    return Model(
        module,
        type(module).__name__,
        None if is_classifier else ResizedAndNormalised(multiple=multiple),
        ordered_names(module.names),
        readers=OutputReaders(_class_logits if is_classifier else read_class_maxima, _candidates_reader(module)),
    )


def unwrap(model: Any) -> nn.Module | None:
    """Take the network out of a ``YOLO(...)`` object; None for any other object."""
    if not any(cls.__module__ == "ultralytics.engine.model" for cls in type(model).__mro__):
        return None
    if not isinstance(model.model, nn.Module):
        raise ModelError(f"this {type(model).__name__} is an exported network, which has no layers; load its .pt file")
    return model.model


def _class_logits(raw: Any) -> Tensor:
    """Return image x class: a classifier returns probabilities and their logits."""
    return read_class_scores(raw[1] if isinstance(raw, tuple | list) and len(raw) == 2 else raw)


def read_class_maxima(raw: Any) -> Tensor:
    """Return image x class: the maximum of each class logit over all candidates of the head whose boxes the model uses."""
    scores: Tensor = _head_outputs(raw)[1]["scores"]  # image x class x candidate
    return scores.amax(2)


def _head_outputs(raw: Any) -> tuple[Tensor | None, Mapping[str, Any], bool]:
    """Return the decoded boxes, the raw outputs of the head that they come from, and whether that head selects by itself.

    Boxes are image x (4 + class + ...) x candidate, or image x box x (6 + ...) where the head selects them.
    """
    heads = raw[1] if isinstance(raw, tuple | list) and len(raw) > 1 else raw
    decoded = None if heads is raw else raw[0]
    decoded = decoded[0] if isinstance(decoded, tuple | list) else decoded  # a head with masks returns their basis too
    is_selected = False
    if isinstance(heads, Mapping) and "one2one" in heads and decoded is not None:
        _, classes, candidates = heads["one2many"]["scores"].shape
        is_selected = not (decoded.shape[2] == candidates and decoded.shape[1] >= 4 + classes)
        heads = heads["one2one" if is_selected else "one2many"]
    if not isinstance(heads, Mapping) or "scores" not in heads:
        raise TargetError(
            "no raw class scores are found in this detector's output, where ultralytics 8.4 has them",
            remedy=Remedy("pass target=a callable from the output to one score per image"),
        )
    return decoded, heads, is_selected


def _candidates_reader(module: Any) -> Callable[[ModelOutput], Candidates] | None:
    """Return the reader of a model's detections by its last layer; None where that is not a detection head."""
    head = module.model[-1] if isinstance(getattr(module, "model", None), nn.Sequential) else None
    kinds = {cls.__name__ for cls in type(head).__mro__}
    if "RTDETRDecoder" in kinds:
        return _query_candidates
    return partial(_cell_candidates, head) if "Detect" in kinds else None


def _cell_candidates(head: Any, output: ModelOutput) -> Candidates:
    """Read a YOLO head: each candidate is a cell of one of its levels, level after level.

    The head itself decodes the boxes. The detections are those that the library's non-maximum suppression keeps, with its default
    overlap and no minimum score; of a head that selects by itself, its selection.
    """
    decoded, raw, is_selected = _head_outputs(output.raw)
    if decoded is None:
        raise TargetError(
            f"{output.model} returned no boxes, because ultralytics' detectors have none in training mode; call model.eval()"
        )
    count = raw["scores"].shape[1]
    is_rotated = "angle" in raw
    decoded_boxes = head._get_decode_boxes(raw) if is_selected else decoded[:, :4]  # image x 4 x candidate
    if is_rotated:
        boxes = _upright(decoded_boxes, raw["angle"])
    else:
        boxes = decoded_boxes.transpose(1, 2) if is_selected else centre_to_corners(decoded_boxes.transpose(1, 2))
    if is_selected:
        detections = _selected_by(head, raw["scores"].detach(), boxes)
    else:
        detections = _suppressed_by_library(decoded.detach(), count, boxes, rotated=is_rotated)
    cells = torch.tensor([math.prod(maps.shape[-2:]) for maps in raw["feats"]])
    levels = [torch.arange(len(cells)).repeat_interleave(cells)] * output.batch
    logits = list(raw["scores"].transpose(1, 2))
    return Candidates(list(boxes), logits, detections, is_anchored=True, levels=levels, uses_sigmoid=True)


def _upright(rotated: Tensor, angle: Tensor) -> Tensor:
    """Return the upright boxes (image x candidate x 4, corners) around rotated ones (x, y, width, height)."""
    cos, sin = angle.cos().abs(), angle.sin().abs()
    width, height = rotated[:, 2:3], rotated[:, 3:4]
    upright = torch.cat([rotated[:, :2], width * cos + height * sin, width * sin + height * cos], 1)
    return centre_to_corners(upright.transpose(1, 2))


def _suppressed_by_library(decoded: Tensor, classes: int, boxes: Tensor, *, rotated: bool) -> list[list[DetectedBox]]:
    from ultralytics.utils import DEFAULT_CFG, nms  # imported already by whoever has the model

    rows_per_image, candidates = nms.non_max_suppression(
        decoded,
        0.0,
        DEFAULT_CFG.iou,
        nc=classes,
        max_det=DEFAULT_CFG.max_det,
        max_nms=_MOST_COMPARED,
        rotated=rotated,
        return_idxs=True,
    )
    return [
        detected_boxes(indices.flatten().long(), rows[:, 5], rows[:, 4], boxes[image][indices.flatten().long()])
        for image, (rows, indices) in enumerate(zip(rows_per_image, candidates, strict=True))
    ]


def _selected_by(head: Any, logits: Tensor, boxes: Tensor) -> list[list[DetectedBox]]:
    scores, categories, candidates = head.get_topk_index(logits.transpose(1, 2).sigmoid(), head.max_det)
    per_image = zip(candidates, categories.flatten(1), scores.flatten(1), boxes, strict=True)
    return [
        detected_boxes(indices, image_categories, image_scores, image_boxes[indices])
        for indices, image_categories, image_scores, image_boxes in per_image
    ]


def _query_candidates(output: ModelOutput) -> Candidates:
    """Read the queries of ultralytics' RT-DETR, each once, as its best class (the library may list it twice)."""
    raw = output.raw[1] if isinstance(output.raw, tuple | list) and len(output.raw) == 2 else output.raw
    if not isinstance(raw, tuple | list) or len(raw) < 2:
        raise TargetError(
            f"no raw boxes and scores are found in the output of {output.model}, where ultralytics 8.4 has them",
            remedy=Remedy("pass target=a callable from the output to one score per image"),
        )
    logits = raw[1][-1]
    boxes = shares_to_pixels(centre_to_corners(raw[0][-1]), output.input_size)
    return Candidates(
        list(boxes),
        list(logits),
        [boxes_by_logit(*image) for image in zip(logits, boxes, strict=True)],
        uses_sigmoid=True,
    )


FAMILIES.register("ultralytics", Family("ultralytics", recognise, unwrap=unwrap))
