"""The answer: raw maps, heatmaps and scores, drawn, saved and shown in a notebook."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glowmap.errors import InputError, OutputError
from glowmap.explanation.figure import laid_out, title_of
from glowmap.explanation.files import file_kind, write_whole
from glowmap.explanation.maps import Explained
from glowmap.explanation.storage import pack, unpack
from glowmap.explanation.tiles import Frames, overlaid
from glowmap.methods.smoothing import fused
from glowmap.outputs import Prediction
from glowmap.render import OPACITY, Look, panel
from glowmap.shapes import crossed

__all__ = ["Explanation", "Explanations", "Prediction"]


@dataclass(frozen=True, eq=False)
class Explanation(Explained):
    """Where one layer holds the evidence for one question, for every image of a batch.

    ``raw`` is signed, unnormalised, batch x rows x columns of the layer: the truth. ``scores`` are what was explained, one
    an image, ``targets`` their wording, ``marks`` what they point at, ``cautions`` what to mind before trusting the map.
    """

    def overlay(
        self,
        index: int = 0,
        *,
        colormap: str = "glow",
        opacity: float = OPACITY,
        edges: bool = False,
        places: Frames = None,
        annotations: bool = False,
    ) -> Image.Image:
        """Lay one image's heat over the part of its picture that the model saw, at the picture's own resolution.

        A clip is drawn as a strip of frames, a volume as slices, a signal as curves; ``places`` chooses which frames, slices or
        channels, counted from 0. ``edges`` brings the heat's borders to the picture's own edges (a guided filter), which looks
        finer and says no more. ``marks`` draws what the question points at, as panels do. Raises OutputError for places that are
        not there, and where there is nothing to draw on.
        """
        return overlaid(
            self, index, colormap=colormap, opacity=opacity, edges=edges, places=places, annotations=annotations
        )

    def panel(
        self, *, colormap: str = "glow", opacity: float = OPACITY, scale: int = 1, places: Frames = None
    ) -> Image.Image:
        """Draw picture, prediction and overlay side by side, a row for each image; ``scale=2`` draws twice as large."""
        return Explanations([self]).panel(colormap=colormap, opacity=opacity, scale=scale, places=places)

    def save(
        self,
        path: str | Path,
        *,
        colormap: str = "glow",
        opacity: float = OPACITY,
        scale: int | None = None,
        places: Frames = None,
    ) -> Path:
        """Write the panel (.png, .jpg, .webp, .tiff, .pdf) or the numbers (.npz, see :meth:`load`); all or nothing."""
        return Explanations([self]).save(path, colormap=colormap, opacity=opacity, scale=scale, places=places)

    @staticmethod
    def load(path: str | Path) -> "Explanation":
        """Read back what ``save("....npz")`` wrote; for a file of several explanations use ``Explanations.load``."""
        several = Explanations.load(path)
        if len(several) != 1:
            raise InputError(f"{path} holds {len(several)} explanations; read them with Explanations.load")
        only: Explanation = several[0]
        return only

    def __getitem__(self, index: int | slice) -> "Explanation":
        """Take one image out as an explanation of a batch of one, or several as a smaller batch."""
        one = index if isinstance(index, slice) else self.only(index)
        return replace(
            self,
            raw=self.raw[one],
            scores=self.scores[one],
            targets=self.targets[one],
            pictures=self.pictures[one],
            annotations=self.annotations[one],
            prediction=None if self.prediction is None else self.prediction.of(one),
        )

    def __iter__(self) -> Iterator["Explanation"]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        asked = ", ".join(dict.fromkeys(self.targets))
        grid = crossed(self.grid)
        return f"<Explanation of {asked!r} by {self.method} at {self.layer} ({grid}), {len(self)} image{'s' * (len(self) > 1)}>"

    def _repr_png_(self) -> bytes | None:
        return Explanations([self])._repr_png_()


class Explanations(Sequence[Explanation]):
    """The explanations of one call, in order: question by question, and layer by layer within each."""

    def __init__(self, explanations: Iterable[Explanation]) -> None:
        self._all = tuple(explanations)

    def __getitem__(self, index: Any) -> Any:
        return Explanations(self._all[index]) if isinstance(index, slice) else self._all[index]

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return "<Explanations:\n  " + "\n  ".join(map(repr, self._all)) + ">" if self else "<no explanations>"

    @property
    def cautions(self) -> tuple[str, ...]:
        """The notes of all, each once."""
        return tuple(dict.fromkeys(caution for explanation in self for caution in explanation.cautions))

    def panel(
        self, *, colormap: str = "glow", opacity: float = OPACITY, scale: int = 1, places: Frames = None
    ) -> Image.Image:
        """Draw picture, prediction and heat side by side.

        Several questions or methods at one layer follow each other after the picture, which stands once; with several layers
        there is a row for each image and question, or for each method, and a column a layer.
        """
        if not self:
            raise OutputError("there are no explanations to draw; ask for at least one layer")
        groups = self._by_question()
        tiles = laid_out(groups, Look(colormap, opacity), places)
        return panel(tiles, title=title_of(groups), footer=self.cautions, scale=scale)

    def save(
        self,
        path: str | Path,
        *,
        colormap: str = "glow",
        opacity: float = OPACITY,
        scale: int | None = None,
        places: Frames = None,
    ) -> Path:
        """Write the panel (.png, .jpg, .webp, .tiff, .pdf) or the numbers (.npz); the file appears whole or not at all.

        The panel is drawn at ``scale`` (by default 2 in a PDF, which is for print, else 1).
        """
        path, kind = Path(path), file_kind(path)
        if kind == "NPZ":
            arrays = pack(self)
            return write_whole(path, lambda stream: np.savez_compressed(stream, allow_pickle=False, **arrays))
        scale = scale or (2 if kind == "PDF" else 1)
        drawn = self.panel(colormap=colormap, opacity=opacity, scale=scale, places=places)
        return write_whole(path, lambda stream: drawn.save(stream, format=kind, dpi=(200, 200), quality=95))

    @staticmethod
    def load(path: str | Path) -> "Explanations":
        """Read back what ``save("....npz")`` wrote. Raises InputError for a file that is missing or something else."""
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                fields = unpack(dict(arrays))
                for one in fields:
                    one["prediction"] = one["prediction"] and Prediction.read(one["prediction"])
                return Explanations(Explanation(**one) for one in fields)
        except Exception as error:  # zipfile, zlib, json and numpy each have their own
            raise InputError(
                f"{path} is no file of explanations ({type(error).__name__}); give one that save('....npz') wrote"
            ) from error

    def fused(self, how: str = "product") -> "Explanations":
        """Fuse the layers of each question and method into one map, at the input's resolution, by product, mean or max.

        Each layer's heatmap counts from 0 to 1. The product is RefineCAM: what all layers agree on, as sharp as the finest.
        """
        return Explanations(_fused(group, how) for group in self._by_question())

    def _by_question(self) -> list[list[Explanation]]:
        """Group what stands in one row: the same question at several layers."""
        groups: list[list[Explanation]] = []
        for explanation in self:
            group = groups[-1] if groups else []
            if group and _same_question(group[0], explanation) and explanation.layer not in {e.layer for e in group}:
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


def _same_question(one: Explanation, other: Explanation) -> bool:
    return (one.method, one.targets) == (other.method, other.targets) and torch.equal(one.scores, other.scores)
