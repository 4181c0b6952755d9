"""A model's output for one batch, and the functions that read it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from glowmap import tree
from glowmap.cautions import Caution
from glowmap.errors import Remedy, TargetError, is_whole_number
from glowmap.outputs.boxes import pixels_to_shares
from glowmap.outputs.candidates import Candidates
from glowmap.outputs.class_names import background_class, index_of_name
from glowmap.outputs.prediction import Prediction
from glowmap.shapes import Labels, Logits


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


@dataclass(frozen=True)
class OutputReaders:
    """The functions that read a model's raw output, and what its scores mean. None: the model has no such output.

    ``logits`` takes the raw output and returns class scores, batch x category (x rows x columns). The others take a
    :class:`ModelOutput`: ``candidates`` returns a detector's boxes before suppression, ``token_logits`` the logits of the next
    token at each position of a text (batch x position x vocabulary), ``embedding`` an embedding of each image
    (batch x feature), and ``embedding_cautions`` the reasons to doubt that embedding.

    ``prefers_dense`` is for models with candidates whose class scores are read per pixel all the same, such as Mask2Former.
    ``are_exclusive`` is True where the classes share one softmax, False where each has its own sigmoid; None: softmax for two
    outputs or more, sigmoid for one.
    """

    logits: Callable[[Any], Tensor] = read_logits
    candidates: "Callable[[ModelOutput], Candidates] | None" = None
    token_logits: "Callable[[ModelOutput], Tensor] | None" = None
    embedding: "Callable[[ModelOutput], Tensor] | None" = None
    embedding_cautions: "Callable[[ModelOutput], Sequence[Caution]]" = lambda _: ()
    prefers_dense: bool = False
    are_exclusive: bool | None = None

    are_detections: bool = field(init=False)  # the class scores come from detection candidates

    def __post_init__(self) -> None:
        object.__setattr__(self, "are_detections", self.candidates is not None and not self.prefers_dense)


@dataclass(frozen=True)
class ModelOutput:
    """A model's ``raw`` output for a batch of images, with the readers that interpret it.

    ``intermediates`` holds outputs of the model's parts, by the name under which they were recorded. ``pictures`` are those
    that the batch was made of. ``image`` is the index in the batch of the image that this output was cut down to.
    ``background_index`` is the background class where the class names do not tell it.
    """

    raw: Any
    batch: int
    readers: OutputReaders = field(default_factory=OutputReaders, repr=False)
    class_names: Sequence[str] | None = None
    input_size: tuple[int, ...] = ()
    model: str = "the model"
    pictures: Sequence[Any] = field(default=(), repr=False)  # glowmap.inputs.Drawable, which this room does not import
    intermediates: Mapping[str, Any] = field(default_factory=dict, repr=False)
    image: int | None = None
    background_index: int | None = None

    @cached_property
    def candidates(self) -> Candidates:
        """A detector's boxes before suppression. Raises TargetError where the model is not a known detector."""
        if self.readers.candidates is None:
            raise TargetError(
                f"{self.model} is not a detector that glowmap can read, so it has no detections",
                remedy=Remedy(
                    "choose a class as the target, or pass target=a callable from the output to one score per image",
                    "choose a class: --target CLASS",
                ),
            )
        candidates = self.readers.candidates(self)
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
    def background(self) -> int | None:
        """The index of the background class, which is predicted only where nothing else is; None without one."""
        if self.readers.are_detections:
            return self.candidates.background
        return background_class(self.class_names or ()) if self.background_index is None else self.background_index

    @property
    def canvas(self) -> tuple[int, int] | None:
        """The padded input size (rows, columns) of a detector that pads inside; None for other models and unread outputs."""
        with suppress(TargetError):
            return self.candidates.canvas if self.readers.candidates is not None else None
        return None

    @cached_property
    def is_dense(self) -> bool:
        """Whether the scores belong to pixels or boxes. False where the class scores cannot be read."""
        try:
            return self.readers.are_detections or self.logits.ndim > 2
        except TargetError:
            return False

    @cached_property
    def token_logits(self) -> Tensor:
        """The logits of the next token, batch x position x vocabulary. Raises TargetError where the model writes no text."""
        if self.readers.token_logits is None:
            raise TargetError(
                f"{self.model} writes no text",
                remedy=Remedy(
                    "choose a class as the target, or pass target=a callable", "choose a class: --target CLASS"
                ),
            )
        return self.readers.token_logits(self)

    @cached_property
    def embedding(self) -> Tensor:
        """An embedding of each image, batch x feature. Raises TargetError where none is found in the output."""
        if self.readers.embedding is None:
            raise TargetError(
                f"no embedding is found in the output of {self.model}",
                remedy=Remedy("pass target=a callable"),
            )
        return self.readers.embedding(self)

    @property
    def embedding_cautions(self) -> Sequence[Caution]:
        """Reasons to doubt that ``embedding`` is an embedding."""
        return self.readers.embedding_cautions(self)

    @property
    def prediction(self) -> Prediction | None:
        """The model's prediction, detached from the graph; None where the output has no class scores."""
        if self.readers.token_logits is not None:
            return None  # the most likely next token is not a class
        try:
            if self.readers.are_detections:
                return self._detections()
            logits = self.logits.detach()
        except TargetError:
            return None
        names = self.names(logits.shape[1])
        if logits.ndim > 2:
            is_single = logits.shape[1] == 1
            names = (f"not {names[0]}", names[0]) if is_single else names
            return Prediction(names, labels=self.labels + 1 if is_single else self.labels)
        try:
            return Prediction(names, probabilities=self.probabilities.detach())
        except TargetError:  # one text, whose probability needs others
            return None

    def _detections(self) -> Prediction:
        """Read a detector's prediction. Its class scores are maxima over many candidates, which do not rank the classes."""
        candidates = self.candidates
        boxes = tuple(
            tuple(
                replace(
                    box,
                    corners=pixels_to_shares(box.corners, self.input_size),
                    candidate=None,
                    name=self.name(box.category),
                )
                for box in image
            )
            for image in candidates.detections
        )
        return Prediction(self.names(candidates.logits[0].shape[1]), boxes=boxes)

    def only(self, image: int) -> "ModelOutput":
        """Cut this output down to one image of the batch."""
        rows = slice(image, image + 1)
        readers = replace(
            self.readers,
            logits=lambda _: self.outputs[rows],
            candidates=self.readers.candidates and (lambda _: self.candidates.only(image)),
            token_logits=self.readers.token_logits and (lambda _: self.token_logits[rows]),
            embedding=self.readers.embedding and (lambda _: self.embedding[rows]),
            embedding_cautions=lambda _: self.embedding_cautions,
        )
        return replace(
            self,
            raw=self.raw[rows] if isinstance(self.raw, list) and len(self.raw) == self.batch else self.raw,
            batch=1,
            image=image if self.image is None else self.image,
            readers=readers,
            pictures=self.pictures[rows],
            intermediates=tree.map(
                dict(self.intermediates), lambda part: part[rows] if part.ndim and len(part) == self.batch else part
            ),
        )

    @cached_property
    def logits(self) -> Logits:
        """The class scores, batch x category (x rows x columns for a dense model); of a detector the maximum over candidates.

        One output with two class names (``is_binary``) becomes two logits: its negative, and itself.
        """
        logits = self.outputs
        if self.class_names is not None:
            logits = torch.cat([-logits, logits], 1) if self.is_binary else logits
            self._check_names(logits.shape[1])
        return logits

    @cached_property
    def is_binary(self) -> bool:
        """Whether one output stands for two named classes: the first where it is negative, else the second."""
        names = self.class_names
        return names is not None and len(names) == 2 and self.outputs.shape[1] == 1 and not self.readers.are_detections

    @cached_property
    def probabilities(self) -> Logits:
        """The class probabilities, of the same shape as ``logits``: by softmax, or by sigmoid for independent classes.

        Raises TargetError where the logits given here are only some of those that share a softmax.
        """
        logits = tree.full_precision(self.logits)
        return logits.sigmoid() if self.has_independent_classes else logits.softmax(1)

    @property
    def has_independent_classes(self) -> bool:
        """Whether the probability of a class depends on its own logit alone (sigmoid).

        Raises TargetError where it depends on logits that are not here.
        """
        if self.readers.are_detections and not self.candidates.uses_sigmoid:
            raise TargetError(
                f"{self.model} computes a softmax over classes within each box, so a class has no probability for the whole "
                "image",
                remedy=Remedy(
                    "choose a box: targets.Detection(0, category=targets.Probability(...)), or take the logit"
                ),
            )
        if self.readers.are_detections:
            return True
        if self.readers.are_exclusive and self.outputs.shape[1] == 1:
            raise TargetError(
                f"{self.model} computes a softmax over all texts of a call, so {self.name(0)} alone has no probability; give "
                "further texts in the same call, or take the logit"
            )
        return self.outputs.shape[1] == 1 or self.readers.are_exclusive is False

    @cached_property
    def outputs(self) -> Logits:
        """The class scores as the model returns them: as ``logits``, but a single one where ``is_binary``."""
        if self.readers.are_detections:
            return self._highest_of_candidates()
        if self.class_names is not None and not self.class_names:
            raise TargetError(
                f"{self.model} compares pictures with texts, and no text was given",
                remedy=Remedy(
                    "give one: target=targets.Text('a photo of a dog')", "give one: --text 'a photo of a dog'"
                ),
            )
        logits = self.readers.logits(self.raw)
        if not logits.is_floating_point() or logits.layout != torch.strided:
            kind = f"{str(logits.dtype).removeprefix('torch.')} ({str(logits.layout).removeprefix('torch.')})"
            raise TargetError(
                f"the output of {self.model} is {kind}, which cannot be class scores",
                remedy=Remedy("pass target=a callable from the output to one floating score per image"),
            )
        if logits.ndim < 2 or len(logits) != self.batch:
            raise TargetError(
                f"the output of {self.model} has the shape {tuple(logits.shape)}, which is not {self.batch} images x classes",
                remedy=Remedy("pass target=a callable from the output to one score per image"),
            )
        if logits.ndim > 2 and logits[0, 0].numel() == 1:  # a classifier that ends in a convolution
            logits = logits.flatten(1)
        if self.input_size and logits.ndim > 2 and logits.ndim - 2 != len(self.input_size):
            raise TargetError(
                f"the output of {self.model} has the shape {tuple(logits.shape)}, which is neither images x classes nor images x "
                f"classes x {len(self.input_size)} spatial axes",
                remedy=Remedy("pass target=a callable from the output to one score per image"),
            )
        return logits

    def _highest_of_candidates(self) -> Logits:
        """Take the maximum of each class over a detector's candidates, batch x category."""
        empty = [image for image, logits in enumerate(self.candidates.logits) if not len(logits)]
        if empty:
            raise TargetError(
                f"{self.model} has no candidate at all in image {empty[0]}, so no class has a score; give another picture"
            )
        return torch.stack([logits.amax(0) for logits in self.candidates.logits])

    @cached_property
    def labels(self) -> Labels:
        """The class predicted at every pixel; with a single class, 0 where its logit is positive and -1 elsewhere."""
        logits = self.logits.detach()
        return (logits[:, 0] > 0).long() - 1 if logits.shape[1] == 1 else logits.argmax(1)

    def present(self, image: int) -> list[int]:
        """List the classes that a dense model predicts in an image by falling area, a background last."""
        indices, counts = torch.unique(self.labels[image], return_counts=True)
        ordered = [int(index) for index in indices[counts.argsort(descending=True, stable=True)] if index >= 0]
        return sorted(ordered, key=lambda index: index == self.background)

    def name(self, index: int) -> str:
        """Return the name of a class, or ``class 3`` where the names are unknown."""
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def names(self, count: int) -> tuple[str, ...]:
        """Return the names of the first ``count`` classes."""
        if self.class_names is not None:
            return tuple(self.class_names[:count])
        return tuple([f"class {index}" for index in range(count)])

    def index(self, category: int | str) -> int:
        """Find a class by index or name. Raises TargetError for an unknown or ambiguous one.

        A name matches exactly, or else without regard to case, or else as one of the synonyms in "lynx, catamount".
        """
        count = self.logits.shape[1]
        if isinstance(category, str):
            return index_of_name(category, self.class_names, count, self.model)
        if type(category) is not int and not is_whole_number(category):
            raise TargetError(f"a class is an index or a name, not {type(category).__name__}; give one of these")
        if not 0 <= category < count:
            raise TargetError(f"no class {category}: {self.model} has {count}, from 0 to {count - 1}")
        return int(category)
