"""ultralytics' detectors and classifiers, when somebody brings one; none is built here by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glowmap.errors import ModelError, TargetError
from glowmap.models._family import FAMILIES, Family, Model, is_of, names_in_order
from glowmap.models.plain import ResizedAndNormalised
from glowmap.models.plain import read_logits as read_plain


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
    return Model(module, type(module).__name__, preprocess, classes, read_logits=read)


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
    raw = output[1] if isinstance(output, tuple | list) and len(output) > 1 else output
    if isinstance(raw, Mapping) and "one2one" in raw:
        boxes = output[0][0] if isinstance(output[0], tuple | list) else output[0]
        _, classes, places = raw["one2many"]["scores"].shape
        every = boxes.shape[2] == places and boxes.shape[1] >= 4 + classes  # else a row a chosen box
        raw = raw["one2many" if every else "one2one"]
    if not isinstance(raw, Mapping) or "scores" not in raw:
        raise TargetError(
            "no raw class scores are found in this detector's output, as ultralytics 8.4 gives them; "
            "pass target=a callable from the output to one score per image"
        )
    scores: Tensor = raw["scores"]  # image x class x place
    return scores.amax(2)


FAMILIES.put("ultralytics", Family("ultralytics", names, build, recognise))
