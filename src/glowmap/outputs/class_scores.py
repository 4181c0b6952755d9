"""Class scores in whatever structure a model returned."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from glowmap.errors import Remedy, TargetError


def read_logits(output: Any) -> Tensor:
    """Find the class scores in a raw output: a tensor, ``.logits``, the keys "logits" or "out", or a tuple's first tensor."""
    if isinstance(output, Mapping):
        candidates = [output[key] for key in ("logits", "out") if key in output]
    elif isinstance(getattr(output, "logits", None), Tensor):
        candidates = [output.logits]
    else:
        candidates = [output[0]] if isinstance(output, tuple | list) and output else [output]
    if not candidates or not isinstance(candidates[0], Tensor):
        if candidates and isinstance(candidates[0], Mapping) and "boxes" in candidates[0]:
            raise TargetError(
                "the model answers with detections, not with class scores",
                remedy=Remedy(
                    "ask about one of them with target="
                    "glowmap.targets.SimilarDetection(category, box), or give a callable from the output to one score per image"
                ),
            )
        keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise TargetError(
            f"no class scores are found in the model's output, a {type(output).__name__}{keys}",
            remedy=Remedy("pass target=a callable from this output to one score per image"),
        )
    return candidates[0]
