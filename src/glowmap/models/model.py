"""A module with what one must know to ask it about pictures."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from glowmap.capture import WithIntermediates
from glowmap.errors import InputError
from glowmap.inputs import Batch, PatchPositions, PictureLike, as_batch, read_pictures
from glowmap.models.preprocessing import Clips, Preprocess
from glowmap.outputs import Candidates, ModelOutput, doubt_embedding, read_embedding, read_logits
from glowmap.targets import Target, Text

_PICTURES = ("pixel_values", "image", "images")  # the keywords under which libraries take pictures


@dataclass(frozen=True)
class TextPass:
    """Texts that one forward pass answers: the batch with them in it, and the questions that each of them becomes.

    Several where a text asks for a map of each word. ``class_names`` are the texts where each is a class of the answer's logits;
    ``opened`` is entered, with the module, while this batch is run, and ``changes`` are other fields of the model for its sake.
    """

    batch: Batch
    targets: Mapping[Text, Sequence[Target]]
    class_names: tuple[str, ...] | None = None
    opened: Callable[[nn.Module], AbstractContextManager[None]] = lambda _: nullcontext()
    changes: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class TextInterface(Protocol):
    """How texts are put to a model of pictures and words."""

    def heard(self, model: "Model", batch: Batch, texts: Sequence[Text]) -> Sequence[TextPass]:
        """Put texts beside a batch of pictures, in as few forward passes as they can be answered by.

        The model is borrowed, and may be run for what it says itself. Without any text: what the model makes of its class names,
        or nothing. Raises TargetError for texts that make no sense to this model, with the reason.
        """

    @property
    def generates(self) -> bool:
        """Whether it says something by itself, which is asked about where no question is put."""


@dataclass(frozen=True)
class Model:
    """A module with what one must know to ask it about pictures.

    ``preprocess`` turns a picture into the module's input; without it the model takes ready-made tensors alone.
    ``class_names`` are in the order of the module's outputs; ``notes`` go with every explanation. ``read_logits``
    finds the class scores, image x class (x rows x columns), in what the module returns. ``beside`` names what the module must
    be given beside images, such as the tokens of a text, and ``speaker`` knows how to put them there.

    ``read_candidates`` reads a detector's boxes before suppression (``dense_first`` where a class is asked of the places all the
    same, as of queries with masks), ``read_words`` the logits of a text's next words,
    ``read_embedding`` an embedding of the picture. ``opened`` is entered, with the module, around every call of it: it may keep
    what its parts put out (:func:`glowmap.capture.opened`). ``exclusive`` tells whether class scores mean something among each
    other alone, or (False) each by itself. ``grids`` are those of the module's tokens that its convolutions do
    not tell, and ``among`` tells where the patches stand among the words that a batch brings.
    """

    module: nn.Module
    name: str
    preprocess: Preprocess | None = None
    class_names: tuple[str, ...] | None = None
    cautions: tuple[str, ...] = ()
    read_logits: Callable[[Any], Tensor] = read_logits
    beside: tuple[str, ...] = ()
    speaker: TextInterface | None = None
    read_candidates: Callable[[ModelOutput], Candidates] | None = None
    dense_first: bool = False
    exclusive: bool | None = None
    read_words: Callable[[ModelOutput], Tensor] | None = None
    read_embedding: Callable[[ModelOutput], Tensor] | None = None
    opened: Callable[[nn.Module], AbstractContextManager[None]] = lambda _: nullcontext()
    grids: Callable[[Batch], Sequence[tuple[int, ...]]] = lambda _: ()
    among: Callable[[Batch], PatchPositions | None] = lambda _: None

    def __repr__(self) -> str:
        classes = "unknown classes" if self.class_names is None else f"{len(self.class_names)} classes"
        return f"<Model {self.name}: {type(self.module).__name__}, {classes}>"

    def read(self, images: Any) -> Batch:
        """Turn pictures, or the module's own input tensors, into one batch on the module's device.

        In a dict of keywords the pictures may stand as they are under "pixel_values", "image" or "images". Raises InputError
        for what is neither, and for pictures that come out of preprocessing at different sizes.
        """
        if isinstance(images, Mapping):
            return self._with_keywords(images)
        several = images if isinstance(images, list | tuple) else (images,)
        ready = any(isinstance(image, Tensor) for image in several)
        if self.beside and self.speaker is None and not (ready and isinstance(images, tuple)):
            raise InputError(
                f"{self.name} takes {' and '.join(self.beside)} beside the images; pass a dict of its keywords: "
                f"{{'pixel_values': images, {', '.join(f'{name!r}: ...' for name in self.beside)}}}, or give what makes them of "
                "texts, glowmap.load(..., processor=...), and ask target=targets.Text('...')"
            )
        if isinstance(self.preprocess, Clips) and isinstance(images, Tensor) and images.dtype == torch.uint8:
            return as_batch(self._moved(self.preprocess.clip(images)), self._expected())
        return as_batch(images, self._expected()) if ready or self.preprocess is None else self._batch(images)

    def _with_keywords(self, keywords: Mapping[str, Any]) -> Batch:
        name = next((name for name in _PICTURES if name in keywords), None)
        if name is None or self.preprocess is None or isinstance(keywords[name], Tensor):
            return as_batch(keywords, self._expected())
        batch = self._batch(keywords[name])
        return Batch((), {**keywords, name: batch.images}, batch.images, batch.pictures).copied()

    def _batch(self, images: PictureLike | Sequence[PictureLike]) -> Batch:
        assert self.preprocess is not None
        tensors, pictures = zip(*(self.preprocess(picture) for picture in read_pictures(images)), strict=True)
        sizes = {tuple(tensor.shape) for tensor in tensors}
        if len(sizes) > 1:
            raise InputError(
                f"the pictures come out of preprocessing at different sizes ({', '.join(map(str, sorted(sizes)))}); "
                "explain them one by one, or give them one size: glowmap.load(..., size=(rows, columns))"
            )
        batch = self._moved(torch.stack(tensors))
        return Batch((batch,), {}, batch, pictures)

    def _moved(self, images: Tensor) -> Tensor:
        parameter = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        return images if parameter is None else images.to(parameter.device, parameter.dtype)

    def _expected(self) -> str:
        return (
            f"without preprocessing a {type(self.module).__name__} takes its own input tensors "
            "(a tensor, a tuple of arguments or a dict of keywords); "
            "for pictures say how they become tensors: glowmap.load(module, size=..., mean=..., std=...)"
        )

    def answer(
        self,
        output: Any,
        batch: Batch,
        images: int | None = None,
        laid_back: Callable[[Tensor], Tensor] | None = None,
    ) -> ModelOutput:
        """Say how to read what the module answered to a batch, or to so many ``images`` made of it.

        ``laid_back`` lays the class scores of changed images over those of the unchanged ones.
        """
        kept, inside = (output.output, output.inside) if isinstance(output, WithIntermediates) else (output, {})
        read = self.read_logits if laid_back is None else lambda raw: laid_back(self.read_logits(raw))
        return ModelOutput(
            kept,
            batch=len(batch.images) if images is None else images,
            read_logits=read,
            class_names=self.class_names,
            input_size=tuple(batch.images.shape[2:]),
            model=self.name,
            pictures=batch.pictures,
            inside=inside,
            read_candidates=self.read_candidates,
            dense_first=self.dense_first,
            exclusive=self.exclusive,
            read_words=self.read_words,
            read_embedding=self.read_embedding or partial(read_embedding, self.module),
            doubt_embedding=partial(doubt_embedding, self.module),
        )

    def changed(self, **fields: Any) -> "Model":
        """Copy with other fields."""
        return replace(self, **fields)
