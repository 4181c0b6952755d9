"""What a target is: a question that gets one score per image, and the contract it is held to."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from glowmap.errors import TargetError
from glowmap.shapes import Scores
from glowmap.targets._answer import Answer


@runtime_checkable
class Target(Protocol):
    """A question: one score per image, and its wording for each image."""

    def score(self, answer: Answer) -> Scores: ...
    def wording(self, answer: Answer, image: int) -> str: ...


def checked(scores: Any, batch: int, wording: str) -> Scores:
    """Hold a target to its contract, one finite floating score per image; else a TargetError says what came."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        what = f"a tensor of {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
        raise TargetError(
            f"the target {wording!r} returned {what}; return a floating tensor of {batch} scores, one per image"
        )
    if scores.ndim == 0 and batch == 1:
        return checked(scores[None], batch, wording)
    if tuple(scores.shape) != (batch,):
        raise TargetError(
            f"the target {wording!r} returned the shape {tuple(scores.shape)} for {batch} image{'s' * (batch > 1)}; "
            f"return one score per image, the shape ({batch},)"
        )
    finite = scores.isfinite().tolist()
    if not all(finite):
        wrong = [i for i, good in enumerate(finite) if not good]
        raise TargetError(
            f"the score of {wording!r} is not finite{in_images(wrong, scores)}; look for NaN or overflow in the model's output"
        )
    return scores


def in_images(wrong: Sequence[int], batch: Sequence[Any] | Tensor) -> str:
    """Say in which images, where there are several."""
    if len(batch) == 1:
        return ""
    return f" in image{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong[:10]))}{', ...' * (len(wrong) > 10)}"
