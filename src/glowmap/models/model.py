"""A model with what is needed to run it on pictures and to read its output."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from glowmap.capture import WithIntermediates
from glowmap.cautions import Caution
from glowmap.errors import InputError, Remedy
from glowmap.inputs import PICTURE_KEYWORDS, Batch, PatchPositions, PictureLike, as_batch, read_pictures
from glowmap.models.preprocessing import ClipTransform, Preprocess
from glowmap.outputs import ModelOutput, OutputReaders, embedding_cautions, read_embedding
from glowmap.targets import Target, Text

AroundForward: TypeAlias = Callable[[nn.Module], AbstractContextManager[None]]


@dataclass(frozen=True)
class TextPass:
    """One forward pass that scores texts: the ``batch`` with the texts in it, and the ``model`` that reads the output.

    ``targets`` maps each text to the targets that score it in this pass: one, or with ``each_word`` several.
    """

    batch: Batch
    targets: Mapping[Text, Sequence[Target]]
    model: "Model"


@runtime_checkable
class TextInterface(Protocol):
    """How texts become inputs of a model of pictures and texts."""

    def passes(self, model: "Model", batch: Batch, texts: Sequence[Text]) -> Sequence[TextPass]:
        """Return the forward passes that score these texts for a batch of pictures, as few as possible.

        Without texts: a pass that scores the model's class names, or the text that the model writes; an empty list where the
        batch can be run as it is. May run the model, which is borrowed. Raises TargetError for texts that the model cannot score.
        """

    @property
    def generates(self) -> bool:
        """Whether the model writes text, which is then its default target."""


@dataclass(frozen=True)
class Model:
    """A module with what is needed to run it on pictures and to read its output.

    ``preprocess`` turns a picture into an input tensor; without it the model takes only tensors. ``class_names`` are in the order
    of the module's outputs. ``cautions`` are added to every explanation. ``readers`` read the module's output.

    ``extra_inputs`` names the keywords that the module needs beside images, such as the tokens of a text, and
    ``text_interface`` makes these from texts. ``around_forward`` is a context in which the module must be run; it may record
    outputs of the module's parts. ``token_grids`` returns the grids of tokens that the module forms without a convolution, and
    ``patch_positions`` the positions of image patches within a text sequence, both for a batch. ``normalises_inside`` is True
    where the module subtracts mean and std itself. ``input_cautions`` returns what to know about a batch.
    """

    module: nn.Module
    name: str
    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None
    cautions: tuple[Caution, ...] = ()
    readers: OutputReaders = field(default_factory=OutputReaders)
    extra_inputs: tuple[str, ...] = ()
    text_interface: TextInterface | None = None
    around_forward: AroundForward = lambda _: nullcontext()
    token_grids: Callable[[Batch], Sequence[tuple[int, ...]]] = lambda _: ()
    patch_positions: Callable[[Batch], PatchPositions | None] = lambda _: None
    normalises_inside: bool = False
    input_cautions: Callable[[Batch], Sequence[Caution]] = lambda _: ()

    def __repr__(self) -> str:
        classes = "unknown classes" if self.class_names is None else f"{len(self.class_names)} classes"
        return f"<Model {self.name}: {type(self.module).__name__}, {classes}>"

    def with_readers(self, **readers: Any) -> "Model":
        """Copy with other :class:`OutputReaders` fields, such as ``candidates=glowmap.models.yolo_boxes()``."""
        return replace(self, readers=replace(self.readers, **readers))

    def read(self, images: Any) -> Batch:
        """Turn pictures, or the module's own input tensors, into one batch on the module's device.

        A dict of keywords may hold pictures under "pixel_values", "image" or "images". Raises InputError for other types, and
        for pictures that have different sizes after preprocessing.
        """
        if isinstance(images, Mapping):
            return self._with_keywords(images)
        has_tensors = any(
            isinstance(image, Tensor) for image in (images if isinstance(images, list | tuple) else (images,))
        )
        if self.extra_inputs and self.text_interface is None and not (has_tensors and isinstance(images, tuple)):
            raise InputError(
                f"{self.name} takes {' and '.join(self.extra_inputs)} beside the images",
                remedy=Remedy(
                    "pass a dict of its keywords: "
                    f"{{'pixel_values': images, {', '.join(f'{name!r}: ...' for name in self.extra_inputs)}}}, or give the "
                    "processor that makes them from texts, glowmap.load(..., processor=...), and target=targets.Text('...')"
                ),
            )
        if isinstance(self.preprocess, ClipTransform) and isinstance(images, Tensor) and images.dtype == torch.uint8:
            return as_batch(self._on_device(self.preprocess.clip(images)), self._expected)
        if has_tensors or self.preprocess is None:
            return as_batch(images, self._expected)
        return self._preprocessed(images)

    def _with_keywords(self, keywords: Mapping[str, Any]) -> Batch:
        name = next((name for name in PICTURE_KEYWORDS if name in keywords), None)
        if name is None or self.preprocess is None or isinstance(keywords[name], Tensor):
            return as_batch(keywords, self._expected)
        batch = self._preprocessed(keywords[name])
        return Batch((), {**keywords, name: batch.images}, batch.images, batch.pictures).copied()

    def _preprocessed(self, images: PictureLike | Sequence[PictureLike]) -> Batch:
        assert self.preprocess is not None
        tensors, pictures = zip(*(self.preprocess(picture) for picture in read_pictures(images)), strict=True)
        sizes = {tuple(tensor.shape) for tensor in tensors}
        if len(sizes) > 1:
            raise InputError(
                f"the pictures have different sizes after preprocessing ({', '.join(map(str, sorted(sizes)))})",
                remedy=Remedy(
                    "explain them one by one, or resize them all: glowmap.load(..., size=(rows, columns))",
                    "resize them all: --size ROWSxCOLUMNS",
                ),
            )
        batch = self._on_device(torch.stack(tensors))
        return Batch((batch,), {}, batch, pictures)

    def _on_device(self, images: Tensor) -> Tensor:
        parameter = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        return images if parameter is None else images.to(parameter.device, parameter.dtype)

    def _expected(self) -> str:
        return (
            f"without preprocessing a {type(self.module).__name__} takes its own input tensors "
            "(a tensor, a tuple of arguments or a dict of keywords); "
            "to give pictures, set their preprocessing: glowmap.load(module, size=..., mean=..., std=...)"
        )

    @cached_property
    def _bound_readers(self) -> OutputReaders:
        """The readers, of which the general ones for embeddings look at the module."""
        embedding = self.readers.embedding or partial(read_embedding, self.module)
        return replace(self.readers, embedding=embedding, embedding_cautions=partial(embedding_cautions, self.module))

    def read_output(
        self,
        raw: Any,
        batch: Batch,
        images: int | None = None,
        realign: Callable[[Tensor], Tensor] | None = None,
    ) -> ModelOutput:
        """Combine the module's raw output for a batch, or for ``images`` rows made of it, with its readers.

        ``realign`` maps the class scores of transformed images (flipped, resized) back onto the original images.
        """
        raw, intermediates = (raw.output, raw.inside) if isinstance(raw, WithIntermediates) else (raw, {})
        readers = self._bound_readers
        if realign is not None:
            readers = replace(readers, logits=lambda raw: realign(self.readers.logits(raw)))
        return ModelOutput(
            raw,
            batch=len(batch.images) if images is None else images,
            readers=readers,
            class_names=self.class_names,
            input_size=tuple(batch.images.shape[2:]),
            model=self.name,
            pictures=batch.pictures,
            intermediates=intermediates,
        )
