"""What a model answered, and how to read it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import TargetError
from glowmap.outputs.candidates import Candidates
from glowmap.registry import near_names
from glowmap.shapes import Labels, Logits


@dataclass(frozen=True)
class ModelOutput:
    """What the model answered, and how to read it.

    ``raw`` is the model's own output, and ``inside`` what was kept of its parts' outputs on the way to it, by the names that a
    family gave them. ``pictures`` are those that the batch came from, where it came from some.
    """

    raw: Any
    batch: int
    read_logits: Callable[[Any], Tensor]
    class_names: Sequence[str] | None = None
    input_size: tuple[int, ...] = ()
    model: str = "the model"
    pictures: Sequence[Any] = field(default=(), repr=False)  # each a Picture, Volume or Signal of the inputs
    inside: Mapping[str, Any] = field(default_factory=dict, repr=False)
    read_candidates: Callable[["ModelOutput"], Candidates] | None = field(default=None, repr=False)
    dense_first: bool = False  # though there are candidates, a class is a matter of places
    exclusive: bool | None = (
        None  # scores mean something among each other, or (False) each by itself; None: by their number
    )
    read_words: Callable[["ModelOutput"], Tensor] | None = field(default=None, repr=False)
    read_embedding: Callable[["ModelOutput"], Tensor] | None = field(default=None, repr=False)
    doubt_embedding: Callable[["ModelOutput"], Sequence[str]] = field(default=lambda _: (), repr=False)
    image: int | None = None  # of the batch, which this was cut down to
    nothing: int | None = (
        None  # the class that stands for nothing in particular, where the model has one and no name tells
    )

    @cached_property
    def candidates(self) -> Candidates:
        """All that a detector might have found, before suppression. TargetError where the model is none."""
        if self.read_candidates is None:
            raise TargetError(
                f"{self.model} is no detector that glowmap can read, so there is no detection to ask about; ask about a class, "
                "or pass target=a callable from the output to one score per image"
            )
        candidates = self.read_candidates(self)
        if len(candidates.logits):
            self._check_names(candidates.logits[0].shape[1])
        return candidates

    def _check_names(self, count: int) -> None:
        if self.class_names is not None and len(self.class_names) != count:
            raise TargetError(
                f"there are {len(self.class_names)} class names for the {count} classes of {self.model}; "
                "give one name for each class, in the model's order"
            )

    @property
    def detects(self) -> bool:
        """Whether the model answers with detections, and with nothing else where a class is asked about."""
        return self.read_candidates is not None and not self.dense_first

    @property
    def background(self) -> int | None:
        """The class that stands for nothing in particular, which is no answer unless there is nothing else."""
        if self.detects:
            return self.candidates.background
        return background_class(self.class_names or ()) if self.nothing is None else self.nothing

    @property
    def canvas(self) -> tuple[int, int] | None:
        """The rows and columns that a detector's layers cover, where it pads its input inside and its output can be read."""
        with suppress(TargetError):
            return self.candidates.canvas if self.read_candidates is not None else None
        return None

    @cached_property
    def dense(self) -> bool:
        """Whether the model answers for places, pixels or boxes; no error where its output cannot be read."""
        try:
            return self.detects or self.logits.ndim > 2
        except TargetError:
            return False

    @cached_property
    def words(self) -> Tensor:
        """The logits of the next word at every place of the text, batch x place x vocabulary. TargetError for none."""
        if self.read_words is None:
            raise TargetError(f"{self.model} says no words; ask about a class, or pass target=a callable")
        return self.read_words(self)

    @cached_property
    def embedding(self) -> Tensor:
        """The model's embedding of each image, batch x feature. TargetError where its output cannot be read so."""
        if self.read_embedding is None:
            raise TargetError(f"no embedding is found in the output of {self.model}; pass target=a callable")
        return self.read_embedding(self)

    def only(self, image: int) -> "ModelOutput":
        """Cut the answer down to one image, for a question that is put to this image alone."""
        one = slice(image, image + 1)
        return replace(
            self,
            raw=self.raw[one] if isinstance(self.raw, list) and len(self.raw) == self.batch else self.raw,
            batch=1,
            image=image if self.image is None else self.image,
            read_logits=lambda _: self.outputs[one],
            pictures=self.pictures[one],
            read_candidates=self.read_candidates and (lambda _: self.candidates.only(image)),
            read_words=self.read_words and (lambda _: self.words[one]),
            read_embedding=self.read_embedding and (lambda _: self.embedding[one]),
            doubt_embedding=lambda _: self.doubt_embedding(self),
            inside=tree.map(
                dict(self.inside), lambda part: part[one] if part.ndim and len(part) == self.batch else part
            ),
        )

    @cached_property
    def logits(self) -> Logits:
        """The class scores, batch x category (x rows x columns for a dense model; of a detector the highest of all candidates).

        Where one output stands for two named classes (``binary``), it is the second's score, and its negative the first's.
        """
        logits = torch.cat([-self.outputs, self.outputs], 1) if self.binary else self.outputs
        self._check_names(logits.shape[1])
        return logits

    @cached_property
    def binary(self) -> bool:
        """Whether one output stands for two classes, which two names say: the first where it is negative, else the second."""
        names = self.class_names
        return names is not None and len(names) == 2 and self.outputs.shape[1] == 1 and not self.detects

    @cached_property
    def probabilities(self) -> Logits:
        """The probability of each class, as ``logits``: by softmax, or by sigmoid where the model has one output alone.

        Or by sigmoid also of several, where each stands for itself. TargetError for one of those that are compared.
        """
        logits = tree.full_precision(self.logits)
        return logits.sigmoid() if self.each_alone else logits.softmax(1)

    @property
    def each_alone(self) -> bool:
        """Whether a class's logit makes its probability by itself. TargetError for one where it takes others."""
        if self.detects and not self.candidates.sigmoid:
            raise TargetError(
                f"{self.model} gives classes a probability among each other, in each box by itself; ask about one box: "
                "targets.Detection(0, category=targets.Probability(...)), or about the logit"
            )
        if self.detects:
            return True
        if self.exclusive and self.outputs.shape[1] == 1:
            raise TargetError(
                f"{self.name(0)} alone has no probability, which {self.model} gives it among others; ask about those in the same "
                "call, or about the logit"
            )
        return self.outputs.shape[1] == 1 or self.exclusive is False

    @cached_property
    def outputs(self) -> Logits:
        """The class scores in the number that the model gives: ``logits``, but one output where it stands for two classes."""
        if self.detects:
            empty = [image for image, one in enumerate(self.candidates.logits) if not len(one)]
            if empty:
                raise TargetError(
                    f"{self.model} has no candidate at all in image {empty[0]}, so no class has a score; give another picture"
                )
            return torch.stack([one.amax(0) for one in self.candidates.logits])
        if self.class_names is not None and not self.class_names:
            raise TargetError(
                f"{self.model} judges pictures by texts, and none was put to it; give one: "
                "target=targets.Text('a photo of a dog')"
            )
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
        if self.input_size and logits.ndim > 2 and logits.ndim - 2 != len(self.input_size):
            raise TargetError(
                f"the output of {self.model} has the shape {tuple(logits.shape)}, which is neither images x classes nor that at "
                f"{len(self.input_size)} axes of places; pass target=a callable from the output to one score per image"
            )
        return logits

    @cached_property
    def labels(self) -> Labels:
        """The class predicted at every pixel; with a single class, 0 where its logit is positive and -1 elsewhere."""
        logits = self.logits.detach()
        return (logits[:, 0] > 0).long() - 1 if logits.shape[1] == 1 else logits.argmax(1)

    def present(self, image: int) -> list[int]:
        """List the classes that a dense model predicts in an image, the largest first, a background last."""
        indices, counts = torch.unique(self.labels[image], return_counts=True)
        ordered = [int(index) for index in indices[counts.argsort(descending=True, stable=True)] if index >= 0]
        return sorted(ordered, key=lambda index: index == self.background)

    def name(self, index: int) -> str:
        """Call a class by its name, or by its number where the names are unknown."""
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def index(self, category: int | str) -> int:
        """Find a class by index or name (case matters only where it must); unknown or ambiguous is a TargetError."""
        count = self.logits.shape[1]
        if not isinstance(category, str):
            if not isinstance(category, int | np.integer) or isinstance(category, bool):
                raise TargetError(f"a class is an index or a name, not {type(category).__name__}; give one of these")
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


def background_class(names: Sequence[str]) -> int | None:
    """Tell which class stands for nothing in particular: the first, where its name says so."""
    words = ("background", "unlabelled", "unlabeled", "void")
    return 0 if names and names[0].strip("_").casefold() in words else None
