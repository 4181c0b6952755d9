"""Class scores in an output of any common structure."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glowmap.errors import Remedy, TargetError


def read_logits(raw: Any) -> Tensor:
    """Return the class scores of a raw output: a tensor, ``.logits``, the keys "logits" or "out", or a tuple's first tensor.

    Raises TargetError where there is no such tensor.
    """
    if isinstance(raw, Mapping):
        candidates = [raw[key] for key in ("logits", "out") if key in raw]
    elif isinstance(getattr(raw, "logits", None), Tensor):
        candidates = [raw.logits]
    else:
        candidates = [raw[0]] if isinstance(raw, tuple | list) and raw else [raw]
    if candidates and isinstance(candidates[0], Tensor):
        return candidates[0]
    if candidates and isinstance(candidates[0], Mapping) and "boxes" in candidates[0]:
        raise TargetError(
            "the model returns detections, not class scores",
            remedy=Remedy(
                "choose one of them with target=glowmap.targets.SimilarDetection(category, box), or pass a callable from the "
                "output to one score per image"
            ),
        )
    keys = f" with the keys {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else ""
    raise TargetError(
        f"no class scores are found in the model's output, a {type(raw).__name__}{keys}",
        remedy=Remedy("pass target=a callable from this output to one score per image"),
    )
