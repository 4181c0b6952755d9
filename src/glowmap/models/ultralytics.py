"""ultralytics' detectors and classifiers, when somebody brings one; none is built here by name."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glowmap.errors import ModelError, TargetError
from glowmap.models._boxes import corners, found_of, in_pixels, surest_first_by_sigmoid
from glowmap.models._family import FAMILIES, Family, Model, is_of, names_in_order
from glowmap.models.plain import ResizedAndNormalised
from glowmap.models.plain import read_logits as read_plain
from glowmap.targets import Answer, Candidates, Found

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
    read = _class_logits if classifies else read_detections
    return Model(
        module,
        type(module).__name__,
        preprocess,
        classes,
        read_logits=read,
        read_candidates=_candidates_of(module),
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
            "no raw class scores are found in this detector's output, as ultralytics 8.4 gives them; "
            "pass target=a callable from the output to one score per image"
        )
    return decoded, raw, chosen


def _candidates_of(module: Any) -> Callable[[Answer], Candidates] | None:
    """Tell how a model's detections are read, by its last layer; None where that is no head of detections."""
    head = module.model[-1] if isinstance(getattr(module, "model", None), nn.Sequential) else None
    kinds = {cls.__name__ for cls in type(head).__mro__}
    if "RTDETRDecoder" in kinds:
        return _queries
    return partial(_places, head) if "Detect" in kinds else None


def _places(head: Any, answer: Answer) -> Candidates:
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
        boxes = corners(own.transpose(1, 2)) if "angle" not in raw else _upright(own, raw["angle"])
        found = _left_by_suppression(decoded.detach(), count, boxes, rotated="angle" in raw)
    cells = torch.tensor([math.prod(maps.shape[-2:]) for maps in raw["feats"]])
    levels = [torch.arange(len(cells)).repeat_interleave(cells)] * answer.batch
    return Candidates(
        list(boxes), list(raw["scores"].transpose(1, 2)), found, anchored=True, levels=levels, sigmoid=True
    )


def _upright(turned: Tensor, angle: Tensor) -> Tensor:
    """Draw upright boxes, image x place x 4, around turned ones (x, y, width, height) of such an angle."""
    cos, sin = angle.cos().abs(), angle.sin().abs()
    width, height = turned[:, 2:3], turned[:, 3:4]
    around = torch.cat([turned[:, :2], width * cos + height * sin, width * sin + height * cos], 1)
    return corners(around.transpose(1, 2))


def _left_by_suppression(decoded: Tensor, classes: int, boxes: Tensor, *, rotated: bool) -> list[list[Found]]:
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
        found_of(at.flatten().long(), rows[:, 5], rows[:, 4], boxes[image][at.flatten().long()])
        for image, (rows, at) in enumerate(zip(kept, places, strict=True))
    ]


def _kept_by(head: Any, logits: Tensor, boxes: Tensor) -> list[list[Found]]:
    scores, categories, places = head.get_topk_index(logits.transpose(1, 2).sigmoid(), head.max_det)
    each = zip(places, categories.flatten(1), scores.flatten(1), boxes, strict=True)
    return [found_of(at, kinds, sure, own[at]) for at, kinds, sure, own in each]


def _queries(answer: Answer) -> Candidates:
    """Read the queries of ultralytics' RT-DETR: each is found once, as its best class (the library may keep it twice)."""
    raw = answer.raw[1] if isinstance(answer.raw, tuple | list) and len(answer.raw) == 2 else answer.raw
    if not isinstance(raw, tuple | list) or len(raw) < 2:
        raise TargetError(
            f"no raw boxes and scores are found in the output of {answer.model}, as ultralytics 8.4 gives them; "
            "pass target=a callable from the output to one score per image"
        )
    logits = raw[1][-1]
    boxes = in_pixels(corners(raw[0][-1]), answer.input_size)
    return Candidates(
        list(boxes),
        list(logits),
        [surest_first_by_sigmoid(*one) for one in zip(logits, boxes, strict=True)],
        sigmoid=True,
    )


FAMILIES.put("ultralytics", Family("ultralytics", names, build, recognise))
