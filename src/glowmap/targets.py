"""What to explain: from what a model answered to one score per image.

A target is a class (:class:`Category`), a set of pixels (:class:`Pixels`), one question for each image (:class:`Each`),
or any callable from the model's raw output to one score per image. A list of targets asks several questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glowmap.errors import TargetError, told
from glowmap.shapes import Labels, Logits, PixelSets, Scores, crossed
from glowmap.shelf import near_names

Mask: TypeAlias = NDArray[Any] | Tensor | Image.Image | Sequence[Any]
FitsMask = Callable[[Tensor, int], Tensor | None]  # (mask of a picture, which picture) -> the part that the model saw


@dataclass(frozen=True)
class Answer:
    """What the model answered, and how to read it."""

    raw: Any
    batch: int
    read_logits: Callable[[Any], Tensor]
    class_names: Sequence[str] | None = None
    input_size: tuple[int, ...] = ()
    model: str = "the model"
    # where the model saw only a part of each picture: (mask at a picture's size, its index) -> the part seen, or None
    seen_part: FitsMask | None = field(default=None, repr=False)

    @cached_property
    def logits(self) -> Logits:
        """The class scores, batch x category (x rows x columns for a dense model)."""
        logits = self.read_logits(self.raw)
        if not logits.is_floating_point() or logits.layout != torch.strided:
            kind = f"{str(logits.dtype).removeprefix('torch.')} ({str(logits.layout).removeprefix('torch.')})"
            raise TargetError(
                f"the output of {self.model} is {kind}, which are no class scores; "
                "pass target=a callable from the output to one floating score per image"
            )
        if logits.ndim < 2 or len(logits) != self.batch:
            raise TargetError(
                f"the output of {self.model} has the shape {tuple(logits.shape)}, which is not {self.batch} images x classes; "
                "pass target=a callable from the output to one score per image"
            )
        if logits.ndim > 2 and logits[0, 0].numel() == 1:  # a classifier that ends in a convolution
            logits = logits.flatten(1)
        if self.class_names is not None and len(self.class_names) != logits.shape[1]:
            raise TargetError(
                f"there are {len(self.class_names)} class names for the {logits.shape[1]} classes of {self.model}; "
                "give one name for each class, in the model's order"
            )
        return logits

    @cached_property
    def labels(self) -> Labels:
        """The class predicted at every pixel; with a single class, 0 where its logit is positive and -1 elsewhere."""
        logits = self.logits.detach()
        return (logits[:, 0] > 0).long() - 1 if logits.shape[1] == 1 else logits.argmax(1)

    def name(self, index: int) -> str:
        """Call a class by its name, or by its number where the names are unknown."""
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def index(self, category: int | str) -> int:
        """Find a class by index or name (case matters only where it must); unknown or ambiguous is a TargetError."""
        count = self.logits.shape[1]
        if not isinstance(category, str):
            if not isinstance(category, int | np.integer) or isinstance(category, bool):
                raise TargetError(
                    f"a class is an index or a name, not {type(category).__name__}; Pixels takes the class first"
                )
            if not 0 <= category < count:
                raise TargetError(f"no class {category}: {self.model} has {count}, from 0 to {count - 1}")
            return int(category)
        if self.class_names is None:
            raise TargetError(
                f"class {category!r} was asked for by name, but the class names of {self.model} are unknown; "
                f"give the index (0 to {count - 1}), or the names: glowmap.load(model, classes=...)"
            )
        wanted = category.casefold()
        for fits in (category.__eq__, lambda name: name.casefold() == wanted, lambda name: wanted in _synonyms(name)):
            found = [i for i, name in enumerate(self.class_names) if fits(name)]
            if len(found) == 1:
                return found[0]
            if found:
                raise TargetError(
                    f"the name {category!r} stands for the classes {found}; give the index of the one you mean"
                )
        synonyms = [part.strip() for name in self.class_names for part in name.split(",")]
        raise TargetError(f"no class {category!r} in {self.model}; {near_names(category, synonyms)}")


def _synonyms(name: str) -> list[str]:
    """Split a name as lists of ImageNet's classes have them: "lynx, catamount"."""
    return [synonym.strip().casefold() for synonym in name.split(",")]


@runtime_checkable
class Target(Protocol):
    """A question: one score per image, and its wording for each image."""

    def score(self, answer: Answer) -> Scores: ...
    def wording(self, answer: Answer, image: int) -> str: ...


@dataclass(frozen=True)
class Category:
    """A class, by index or name: its logit; for a dense model its logits summed over the pixels predicted as this class."""

    category: int | str

    def score(self, answer: Answer) -> Scores:
        index = answer.index(self.category)
        if answer.logits.ndim > 2:
            return Pixels(index).score(answer)
        return answer.logits[:, index]

    def wording(self, answer: Answer, image: int) -> str:
        return answer.name(answer.index(self.category))


@dataclass(frozen=True)
class Predicted:
    """The class that a classifier gives the highest logit, image by image."""

    def score(self, answer: Answer) -> Scores:
        if answer.logits.ndim > 2:
            raise TargetError(
                f"{answer.model} predicts a class at every pixel, so there is no one class to explain; "
                f"pass target=..., for example one that it predicts here: {_present(answer)}"
            )
        return answer.logits.gather(1, answer.logits.argmax(1, keepdim=True))[:, 0]  # amax would share a tie's gradient

    def wording(self, answer: Answer, image: int) -> str:
        return answer.name(int(answer.logits[image].argmax()))


@dataclass(frozen=True)
class Pixels:
    """A class at a set of pixels: the sum of its logits there (Vinogradova et al. 2020, arXiv:2002.11434, eq. 2).

    ``mask`` is rows x columns, or batch x rows x columns for a mask an image; non-zero is inside. It has the size of the
    model's output, of its input, or of the picture. Without a mask: the pixels predicted as this class.
    """

    category: int | str
    mask: Mask | None = None

    def score(self, answer: Answer) -> Scores:
        index = answer.index(self.category)
        logits = answer.logits
        if logits.ndim < 3:
            raise TargetError(
                f"pixels were asked for, but {answer.model} gives one answer per image "
                f"({crossed(logits.shape)}); pass the class alone as target"
            )
        inside = self._inside(answer, index)
        summands = (
            logits[:, index] if logits.dtype == torch.float64 else logits[:, index].float()
        )  # half would overflow
        return (summands * inside).flatten(1).sum(1)

    def wording(self, answer: Answer, image: int) -> str:
        where = "predicted pixels" if self.mask is None else "mask"
        return f"{answer.name(answer.index(self.category))} ({where})"

    def _inside(self, answer: Answer, index: int) -> PixelSets:
        inside = answer.labels == index if self.mask is None else _fitted(self.mask, answer)
        empty = [image for image, part in enumerate(inside) if not part.any()]
        if empty and self.mask is None:
            raise TargetError(
                f"no pixel is predicted as {answer.name(index)!r}{_in_images(empty, inside)}; "
                f"ask for a class that is there ({_present(answer, empty[0])}), or give a mask: targets.Pixels(class, mask)"
            )
        if empty:
            raise TargetError(
                f"the mask is empty{_in_images(empty, inside)}; mark at least one pixel, inside the part of the picture that "
                f"the model sees and large enough for a cell of its output ({crossed(inside.shape[1:])})"
            )
        return inside


@dataclass(frozen=True)
class Each:
    """One question for each image of the batch, in its order."""

    questions: Sequence[Any]

    @cached_property
    def _all(self) -> list[Target]:
        return [as_target(question) for question in self.questions]

    def _targets(self, answer: Answer) -> list[Target]:
        if len(self.questions) != answer.batch:
            raise TargetError(
                f"{len(self.questions)} targets for {answer.batch} images; give one target for each image"
            )
        return self._all

    def score(self, answer: Answer) -> Scores:
        return torch.stack([self._score(answer, target, i) for i, target in enumerate(self._targets(answer))])

    def _score(self, answer: Answer, target: Target, image: int) -> Tensor:
        if isinstance(target, Custom):  # what it reads is its own affair, so it gets all and its image is picked after
            return checked(target.score(answer), answer.batch, target.wording(answer, image))[image]
        return target.score(_only(answer, image))[0]

    def wording(self, answer: Answer, image: int) -> str:
        target = self._targets(answer)[image]
        return target.wording(answer if isinstance(target, Custom) else _only(answer, image), 0)


@dataclass(frozen=True)
class Custom:
    """A callable of the user's own, from the model's raw output to one score per image."""

    function: Callable[[Any], Tensor]

    def score(self, answer: Answer) -> Any:  # held to the contract by checked()
        try:
            return self.function(answer.raw)
        except Exception as error:
            raise TargetError(
                f"the target {self.wording(answer, 0)!r} raised {told(error)}; "
                f"it is called with the raw output of {answer.model}, here {type(answer.raw).__name__}"
            ) from error

    def wording(self, answer: Answer, image: int) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


# One question, as people put it. A list or tuple of these asks several.
TargetLike: TypeAlias = int | str | Target | Tensor | NDArray[Any] | Callable[[Any], Tensor] | None


def as_target(question: Any) -> Target:
    """Read a question as people put it: None (the predicted class), an index, a name, labels of a batch, a target, a callable."""
    if question is None:
        return Predicted()
    if isinstance(question, type):
        raise TargetError(
            f"{question.__name__} is a kind of target, not one; make one: targets.{question.__name__}(...)"
        )
    if isinstance(question, Target):
        return question
    if isinstance(question, bool):
        raise TargetError(f"a target is a class, a set of pixels or a callable, not {question!r}")
    if isinstance(question, int | np.integer | str):
        return Category(question if isinstance(question, str) else int(question))
    if isinstance(question, Tensor | np.ndarray):
        return _labels(question)
    if callable(question):
        return Custom(question)
    raise TargetError(
        f"a target is a class index or name, a targets.Pixels, a callable, or a list of those, not {type(question).__name__}"
    )


def as_questions(target: Any) -> list[Target]:
    """Split a target into its questions: a list or tuple asks several."""
    if isinstance(target, list | tuple):
        if not target:
            raise TargetError("an empty list of targets; give at least one, or None for the predicted class")
        return [as_target(question) for question in target]
    return [as_target(target)]


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
            f"the score of {wording!r} is not finite{_in_images(wrong, scores)}; look for NaN or overflow in the model's output"
        )
    return scores


def _labels(labels: Tensor | NDArray[Any]) -> Category | Each:
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "U" and labels.ndim == 1:
        return Each(tuple(map(str, labels)))
    if isinstance(labels, np.ndarray) and labels.dtype.kind not in "iuf":
        raise TargetError(f"the classes of a batch are one axis of integers or names, not an array of {labels.dtype}")
    indices = torch.as_tensor(labels)
    if indices.ndim == 0 and not indices.is_floating_point() and indices.dtype != torch.bool:
        return Category(int(indices))
    if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
        raise TargetError(
            f"the class indices of a batch are one integer axis, not {indices.dtype} of shape {tuple(indices.shape)}; "
            "for a set of pixels pass targets.Pixels(class, mask)"
        )
    return Each(tuple(indices.tolist()))


def _only(answer: Answer, image: int) -> Answer:
    """Cut the answer down to one image, for a question that is put to this image alone."""
    logits = answer.logits[image : image + 1]
    seen_part = answer.seen_part
    part = None if seen_part is None else (lambda mask, _index: seen_part(mask, image))
    return Answer(logits, 1, lambda raw: raw, answer.class_names, answer.input_size, answer.model, part)


def _fitted(mask: Mask, answer: Answer) -> PixelSets:
    """Bring a mask to the output's size: as it is, or by nearest neighbour from the input's or the picture's size."""
    logits = answer.logits
    size = tuple(logits.shape[2:])
    several = isinstance(mask, list | tuple)  # then of any sizes, one for each picture
    each: list[Any] = list(mask) if isinstance(mask, list | tuple) else [mask]
    given = [_as_booleans(one).to(logits.device) for one in each]
    if not several and given[0].ndim == len(size) + 1:
        given, several = list(given[0]), True
    masks = [] if several and len(given) != len(logits) else given if several else given * len(logits)
    fitted = [_fit_one(part, answer, i, size) for i, part in enumerate(masks)]
    whole = [part for part in fitted if part is not None]
    if not fitted or len(whole) < len(fitted):
        spelled = crossed(size)
        shapes = ", ".join(dict.fromkeys(str(tuple(one.shape)) for one in given))
        came = f"the mask has the shape {shapes}" if not several else f"there are {len(given)} masks of shape {shapes}"
        raise TargetError(
            f"{came}, but the output of {answer.model} is {len(logits)} x {spelled}; "
            f"give {spelled} (the output), {crossed(answer.input_size)} (the input) or the picture's own size, "
            "or one such mask for each image"
        )
    return torch.stack(whole)


def _as_booleans(mask: Mask) -> Tensor:
    if isinstance(mask, Tensor):
        return mask != 0
    values = np.asarray(mask)
    if values.dtype.kind not in "biuf":
        raise TargetError(f"a mask is an array, a tensor or a picture of numbers, not {type(mask).__name__}")
    return torch.from_numpy(np.asarray(values != 0))


def _fit_one(mask: Tensor, answer: Answer, image: int, size: tuple[int, ...]) -> Tensor | None:
    if tuple(mask.shape) == size:
        return mask
    if tuple(mask.shape) != answer.input_size:
        part = answer.seen_part(mask, image) if answer.seen_part else None
        if part is None:
            return None
        mask = part
    return F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0] > 0


def _present(answer: Answer, image: int = 0) -> str:
    """Name the classes that a dense model predicts in an image, the largest first."""
    labels = answer.labels[image]
    indices, counts = torch.unique(labels[labels >= 0], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:5]
    shares = [f"{answer.name(int(indices[i]))} {counts[i] / labels.numel():.1%}" for i in order]
    return ", ".join(shares) or "none"


def _in_images(wrong: Sequence[int], batch: Sequence[Any] | Tensor) -> str:
    """Say in which images, where there are several."""
    if len(batch) == 1:
        return ""
    return f" in image{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong[:10]))}{', ...' * (len(wrong) > 10)}"
