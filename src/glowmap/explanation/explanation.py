"""Explanations: raw maps, heatmaps and scores of one target, drawn, saved and shown in a notebook."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
import torch
from PIL import Image

from glowmap.cautions import Caution
from glowmap.errors import InputError, OutputError
from glowmap.explanation.files import file_kind, write_whole
from glowmap.explanation.maps import Shares, min_max, on_input, shares_inside
from glowmap.explanation.storage import pack, unpack
from glowmap.inputs import Drawable
from glowmap.methods.smoothing import fused
from glowmap.outputs import Prediction
from glowmap.render import Style, StyleOptions
from glowmap.shapes import Heatmaps, RawMaps, Scores, crossed
from glowmap.targets import Annotation

__all__ = ["Explanation", "Explanations", "Prediction"]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where one layer holds the evidence for one target, for every image of a batch.

    ``raw`` is signed, unnormalised and batch x grid of the layer. ``scores`` are the scores of the target, one an image;
    ``target_names`` and ``annotations`` describe the target and outline it, image by image. ``cautions`` say what to know
    before trusting the map.
    """

    raw: RawMaps
    scores: Scores
    layer: str
    method: str
    model: str
    target_names: tuple[str, ...]
    input_size: tuple[int, ...]
    pictures: tuple[Drawable, ...] = ()
    prediction: Prediction | None = None
    cautions: tuple[Caution, ...] = ()
    canvas: tuple[int, ...] = ()  # the size that the maps cover, where the model pads its input at the far ends
    annotations: tuple[tuple[Annotation, ...], ...] = ()

    @cached_property
    def heatmap(self) -> Heatmaps:
        """The raw map after ReLU, (bi-, tri-) linear resizing to the input and min-max scaling of each image: in [0, 1]."""
        return min_max(self._positive)

    @cached_property
    def _positive(self) -> Heatmaps:
        return on_input(self.raw.relu(), self.input_size, self.canvas)

    def signed(self, index: int = 0) -> Heatmaps:
        """Return the raw map of one image at the input's resolution, evidence against the target below zero."""
        return on_input(self.raw[index : index + 1], self.input_size, self.canvas)[0]

    def limits(self, index: int = 0) -> tuple[float, float]:
        """Return the values that the heatmap's 0 and 1 stand for, in units of the raw map."""
        return float(self._positive[index].min()), float(self._positive[index].max())

    def share(self, mask: Any) -> list[Shares]:
        """Compute the share of the heat that lies inside a mask, beside chance, image by image.

        ``mask`` is rows x columns (frames x rows x columns of a clip or volume, samples of a signal), or one for each image;
        non-zero is inside. It has the size of the picture, or covers what the model saw (with any padding) at any resolution.
        The rectified raw map is resized to the mask (see :func:`glowmap.metrics.energy_share`). Raises InputError for others.
        """
        return shares_inside(self.raw, mask, self.input_size, self.canvas, self.pictures)

    @property
    def grid(self) -> tuple[int, ...]:
        """The size of the layer's grid: rows and columns, for a picture."""
        return tuple(self.raw.shape[1:])

    def overlay(self, index: int = 0, **style: Unpack[StyleOptions]) -> Image.Image:
        """Draw one image's heat over the part of its picture that the model saw, at the picture's own resolution.

        ``style`` holds the fields of :class:`glowmap.render.Style`; annotations are shown only with ``show_annotations=True``.
        A clip becomes a strip of frames, a volume slices, a signal curves. Raises OutputError for ``frames`` that do not
        exist, and where there is no picture to draw on.
        """
        from glowmap.explanation.tiles import overlaid  # drawing reads explanations, so this import waits

        style.setdefault("show_annotations", False)
        return overlaid(self, index, Style(**style))

    def panel(self, **style: Unpack[StyleOptions]) -> Image.Image:
        """Draw picture, prediction and overlay side by side, one row an image, in this :class:`glowmap.render.Style`."""
        return Explanations([self]).panel(**style)

    def save(self, path: str | Path, **style: Unpack[StyleOptions]) -> Path:
        """Write the panel (.png, .jpg, .webp, .tiff, .pdf) or the numbers (.npz, see :meth:`load`); all or nothing."""
        return Explanations([self]).save(path, **style)

    @staticmethod
    def load(path: str | Path) -> "Explanation":
        """Read what ``save("....npz")`` wrote. For a file of several explanations use ``Explanations.load``."""
        explanations = Explanations.load(path)
        if len(explanations) != 1:
            raise InputError(f"{path} holds {len(explanations)} explanations; read them with Explanations.load")
        return explanations[0]

    def __getitem__(self, index: int | slice) -> "Explanation":
        """Return the explanation of one image, as a batch of one, or of a slice of the batch."""
        images = index if isinstance(index, slice) else self.slice_of(index)
        return replace(
            self,
            raw=self.raw[images],
            scores=self.scores[images],
            target_names=self.target_names[images],
            pictures=self.pictures[images],
            annotations=self.annotations[images],
            prediction=None if self.prediction is None else self.prediction.of(images),
        )

    def slice_of(self, index: int) -> slice:
        """Return the slice of the batch that holds one image. Raises IndexError for an image that does not exist."""
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"there is no image {index}: the batch has {len(self)} image{'s' * (len(self) != 1)}, counted from 0"
            )
        return slice(index % len(self), index % len(self) + 1)

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> Iterator["Explanation"]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(self.target_names))
        grid = crossed(self.grid)
        return f"<Explanation of {names!r} by {self.method} at {self.layer} ({grid}), {len(self)} image{'s' * (len(self) > 1)}>"

    def _repr_png_(self) -> bytes | None:
        return Explanations([self])._repr_png_()


class Explanations(Sequence[Explanation]):
    """The explanations of one call, in order: target by target, and layer by layer within each."""

    def __init__(self, explanations: Iterable[Explanation]) -> None:
        self._all = tuple(explanations)

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> "Explanations": ...
    def __getitem__(self, index: int | slice) -> "Explanation | Explanations":
        return Explanations(self._all[index]) if isinstance(index, slice) else self._all[index]

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return "<Explanations:\n  " + "\n  ".join(map(repr, self._all)) + ">" if self else "<no explanations>"

    @property
    def cautions(self) -> tuple[Caution, ...]:
        """The cautions of all explanations, each once."""
        return tuple(dict.fromkeys(caution for explanation in self for caution in explanation.cautions))

    def panel(self, **style: Unpack[StyleOptions]) -> Image.Image:
        """Draw picture, prediction and heat side by side, in this :class:`glowmap.render.Style`.

        Several targets or methods at one layer follow each other after the picture, which is drawn once. With several layers
        there is a row for each image and target, or for each method, and a column for each layer.
        """
        from glowmap.explanation.figure import draw_figure  # drawing reads explanations, so this import waits

        if not self:
            raise OutputError("there are no explanations to draw; ask for at least one layer")
        return draw_figure(self._by_target(), Style(**style), self.cautions)

    def save(self, path: str | Path, **style: Unpack[StyleOptions]) -> Path:
        """Write the panel (.png, .jpg, .webp, .tiff, .pdf) or the numbers (.npz); the file appears whole or not at all.

        A PDF is for print, so its panel is drawn at ``scale=2`` unless ``style`` says otherwise.
        """
        path, kind = Path(path), file_kind(path)
        Style(**style)  # a misspelt keyword is an error for the numbers too
        if kind == "NPZ":
            arrays = pack(self)
            return write_whole(path, lambda stream: np.savez_compressed(stream, allow_pickle=False, **arrays))
        if kind == "PDF":
            style.setdefault("scale", 2)
        panel = self.panel(**style)
        return write_whole(path, lambda stream: panel.save(stream, format=kind, dpi=(200, 200), quality=95))

    @staticmethod
    def load(path: str | Path) -> "Explanations":
        """Read what ``save("....npz")`` wrote. Raises InputError for a file that is missing or holds anything else."""
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return Explanations(Explanation(**fields) for fields in unpack(dict(arrays)))
        except Exception as error:  # zipfile, zlib, json and numpy each raise their own
            raise InputError(
                f"{path} is not a file of explanations ({type(error).__name__}); give one that save('NAME.npz') wrote"
            ) from error

    def fused(self, how: str = "product") -> "Explanations":
        """Fuse the layers of each target and method into one map at the input's resolution, by product, mean or max.

        Each layer's heatmap lies in [0, 1]. The product is RefineCAM: what all layers agree on, as sharp as the finest.
        """
        return Explanations(_fused(group, how) for group in self._by_target())

    def _by_target(self) -> list[list[Explanation]]:
        """Group the explanations that stand in one row of a figure: one target by one method, at several layers."""
        groups: list[list[Explanation]] = []
        for explanation in self:
            group = groups[-1] if groups else []
            layers = {earlier.layer for earlier in group}
            if group and _have_same_target(group[0], explanation) and explanation.layer not in layers:
                group.append(explanation)
            else:
                groups.append([explanation])
        return groups

    def _repr_png_(self) -> bytes | None:
        if not self or not self[0].pictures:
            return None  # the notebook falls back to the text
        stream = io.BytesIO()
        self.panel().save(stream, format="PNG")
        return stream.getvalue()


def _fused(group: Sequence[Explanation], how: str) -> Explanation:
    first = group[0]
    cautions = dict.fromkeys(caution for explanation in group for caution in explanation.cautions)
    return replace(
        first,
        raw=fused([explanation.heatmap for explanation in group], how),
        layer=", ".join(explanation.layer for explanation in group),
        method=f"{first.method}, {how} of layers" if len(group) > 1 else first.method,
        canvas=(),  # a heatmap covers the input
        cautions=tuple(cautions),
    )


def _have_same_target(first: Explanation, second: Explanation) -> bool:
    """Tell whether two explanations have the same method, targets and scores."""
    same_names = (first.method, first.target_names) == (second.method, second.target_names)
    return same_names and torch.equal(first.scores, second.scores)
