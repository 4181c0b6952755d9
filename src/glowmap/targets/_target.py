"""What a target is: a question that gets one score per image, and the contract it is held to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.outputs import Corners, ModelOutput
from glowmap.shapes import Scores


@runtime_checkable
class Target(Protocol):
    """A question: one score per image, and its wording for each image.

    A target may have more to say, and is asked where it does:

    - ``settled(answer, image) -> Target``: the same question to one image alone, with all in it fixed that depends on the
      model's answer to the unchanged image (:func:`settled`);
    - ``notes(answer) -> Sequence[str]``: what to mind before trusting a map of this score, for its parts too;
    - ``with_parts(change) -> Target``: for a question made of others, a copy of it with ``change`` applied to each;
    - ``said(answer) -> Tensor``: what the model says of the thing in question altogether, by which a layer is found for this
      question alone (a detection: its class and its box), one number or several, which all are to go through it;
    - ``found_as(first) -> Hashable``: what such a layer depends on beside the model and the input's shape, so that it may be
      remembered, or None where it may not be; ``first()`` is the model's answer in a first pass without gradients;
    - ``of_places(answer) -> bool``: whether it asks about a part of the places, so that no head pools all of them;
    - ``prepared(embed) -> Target``: what it becomes once ``embed(picture)`` has told the model's embedding of another picture;
    - ``watches() -> Sequence[str]``: the layers whose output it reads, found in ``answer.intermediates`` by these names, a list
      with a ``LayerOutput`` for each run of the layer;
    - ``mark(answer, image) -> Mark | Sequence[Mark] | None``: what it points at in the picture, which figures draw;
    - ``ranks``: False where it is about no class, so that a figure shows no ranking of classes beside it.
    """

    def score(self, answer: ModelOutput) -> Scores: ...
    def describe(self, answer: ModelOutput, image: int) -> str: ...


def changed(question: Target, change: Callable[[Target], Target]) -> Target:
    """Rebuild a question with its innermost parts changed."""
    with_parts = getattr(question, "with_parts", None)
    if with_parts is None:
        return change(question)
    rebuilt: Target = with_parts(lambda part: changed(part, change))
    return rebuilt


def parts(question: Target) -> list[Target]:
    """List the questions that one is made of, which may be made of others; none for one that is made of none."""
    found: list[Target] = []

    def see(part: Target) -> Target:
        found.append(part)
        return part

    with_parts = getattr(question, "with_parts", None)
    if with_parts is not None:
        with_parts(see)
    return found


def leaves(question: Target) -> list[Target]:
    """List a question's innermost parts, which of one that is made of none is the question itself."""
    return [leaf for part in parts(question) for leaf in leaves(part)] or [question]


def settled(question: Target, answer: ModelOutput, image: int) -> Target:
    """Put a question to one image alone, with all in it fixed that depends on the model's answer to the unchanged image.

    When a changed input is scored, a class that was the answer, or the pixels that were predicted, are to stay the same.
    """
    settle = getattr(question, "pin", None)
    if settle is None:
        return question
    one: Target = settle(answer, image)
    return one


def cautions_of(question: Target, answer: ModelOutput) -> list[str]:
    """List what to mind before trusting a map of this score: the question's own notes, or else those of its parts."""
    cautions = getattr(question, "cautions", None)
    if cautions is not None:
        return list(cautions(answer))
    return [caution for part in parts(question) for caution in cautions_of(part, answer)]


def of_places(question: Target, answer: ModelOutput) -> bool:
    """Tell whether a question is about a part of the places, so that the head does not pool all of them for it."""
    return any(getattr(one, "of_places", lambda _: answer.is_dense)(answer) for one in leaves(question))


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


def of_nothing(sets: Sequence[Tensor] | Tensor) -> list[int]:
    """List the images whose set of places is empty."""
    return [image for image, part in enumerate(sets) if not part.any()]


def in_images(wrong: Sequence[int], batch: Sequence[Any] | Tensor) -> str:
    """Say in which images, where there are several."""
    if len(batch) == 1:
        return ""
    return f" in image{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong[:10]))}{', ...' * (len(wrong) > 10)}"


@dataclass(frozen=True, eq=False)
class Annotation:
    """One of a point (x, y), a box (left, top, right, bottom), and a region (rows x columns, true inside).

    Points and boxes are in shares of what the model saw: 0 is its left or upper edge, 1 its right or lower one. A region covers
    what the model saw, at any resolution. Raises TargetError for none of the three, or more than one.
    """

    point: tuple[float, float] | None = None
    box: Corners | None = None
    region: Bool[Tensor, "rows columns"] | None = None

    def __post_init__(self) -> None:
        given = sum(one is not None for one in (self.point, self.box, self.region))
        if given != 1:
            raise TargetError(f"a mark is one of a point, a box and a region, and this one has {given}; give just one")


def annotations_of(question: Target, answer: ModelOutput, image: int) -> tuple[Annotation, ...]:
    """List what a question points at in an image: what it says itself, or else what its parts say, each once."""
    mark = getattr(question, "annotations", None)
    if mark is None:
        return _distinct([one for part in parts(question) for one in annotations_of(part, answer, image)])
    own: Annotation | Sequence[Annotation] | None = mark(answer, image)
    return (own,) if isinstance(own, Annotation) else _distinct(own or ())


def ranks(question: Target) -> bool:
    """Tell whether a question is about classes, of which a figure may show which are the likeliest."""
    own = getattr(question, "ranks", None)
    if own is None:
        return any(map(ranks, parts(question))) if parts(question) else True
    return bool(own)


def _distinct(annotations: Sequence[Annotation]) -> tuple[Annotation, ...]:
    """Keep each point and box once: two classes may be asked about at one place."""
    return tuple(
        {(one.point, one.box, None if one.region is None else id(one.region)): one for one in annotations}.values()
    )
