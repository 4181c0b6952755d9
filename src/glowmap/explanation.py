"""The answer: raw maps, heatmaps and scores, drawn, saved and shown in a notebook."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from glowmap.errors import InputError, OutputError
from glowmap.files import file_kind, write_whole
from glowmap.images import Picture
from glowmap.methods.smoothing import fused
from glowmap.metrics import energy_share
from glowmap.render import (
    DIVERGING,
    ColourBar,
    Tile,
    follow_edges,
    label_legend,
    overlay,
    paint_labels,
    panel,
    ranking_tile,
)
from glowmap.shapes import Flags, Heatmaps, Labels, Probabilities, RawMaps, Scores, crossed
from glowmap.stored import pack, unpack
from glowmap.targets import background_class, read_masks

# Bilinear weights of one cell sum to 1 only up to rounding; a span below this share of the values is no heat but noise.
_FLAT = 1e-6
_SKEWED = 1.1  # how far a mask's rows and columns may be stretched apart before it is of something else
OPACITY = 0.65  # of the hottest place: what lies there must still be seen
_RESIZE = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model said: a class at every pixel (``labels``), or the probability of every class (softmax of the logits)."""

    names: tuple[str, ...]
    labels: Labels | None = None
    probabilities: Probabilities | None = None

    def __repr__(self) -> str:
        return (
            f"<Prediction of {len(self.names)} classes {'at every pixel' if self.labels is not None else 'an image'}>"
        )

    def of(self, images: slice) -> "Prediction":
        """Take some images out."""
        labels = None if self.labels is None else self.labels[images]
        return Prediction(self.names, labels, None if self.probabilities is None else self.probabilities[images])


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where one layer holds the evidence for one question, for every image of a batch.

    ``raw`` is signed, unnormalised, batch x rows x columns of the layer: the truth. ``scores`` are what was explained, one
    an image, ``targets`` their wording, ``notes`` what to mind before trusting the map.
    """

    raw: RawMaps
    scores: Scores
    layer: str
    method: str
    model: str
    targets: tuple[str, ...]
    input_size: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    prediction: Prediction | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def heatmap(self) -> Heatmaps:
        """The raw map after ReLU, bilinear resizing to the input and min-max, image by image: in [0, 1]."""
        return min_max(self._positive)

    @cached_property
    def _positive(self) -> Heatmaps:
        return _resized(self.raw.relu(), self.input_size)

    def scale(self, index: int = 0) -> tuple[float, float]:
        """Tell which values of the rectified map the heatmap's 0 and 1 stand for, so that maps can be compared."""
        return float(self._positive[index].min()), float(self._positive[index].max())

    def share(self, mask: Any) -> list[float]:
        """Tell which share of the heat lies inside a mask, image by image (see :func:`glowmap.metrics.energy_share`).

        ``mask`` is rows x columns, or one for each image; non-zero is inside. It has the picture's own size, or covers the
        part that the model saw at any resolution, to which the rectified raw map is resized. Raises InputError for others.
        """
        axes = len(self.grid)
        masks, several = read_masks(mask, axes=axes)
        wrong = [crossed(one.shape) for one in masks if one.ndim != axes or not one.numel()]
        if wrong or (several and len(masks) != len(self)):
            came = f"a mask of {wrong[0]}" if wrong else f"{len(masks)} masks"
            raise InputError(
                f"{came} came for {len(self)} image{'s' * (len(self) > 1)} of {crossed(self.input_size)}; "
                "give one of the picture's size, or one for each image"
            )
        return [self._share(index, one) for index, one in enumerate(masks if several else masks * len(self))]

    def _share(self, index: int, mask: Tensor) -> float:
        seen = self.pictures[index].part_of(mask) if self.pictures else None
        inside = (mask if seen is None else seen).to(self.raw.device)[None]
        strides = [pixels / cells for pixels, cells in zip(self.input_size, inside.shape[1:], strict=True)]
        if seen is None and max(strides) > _SKEWED * min(strides):
            raise InputError(
                f"a mask of {crossed(mask.shape)} has another shape than the input of {crossed(self.input_size)}; give rows x "
                "columns of the picture, or of what the model saw at any resolution"
            )
        return float(energy_share(_resized(self.raw[index : index + 1].relu(), tuple(inside.shape[1:])), inside))

    @property
    def grid(self) -> tuple[int, ...]:
        """The layer's rows and columns."""
        return tuple(self.raw.shape[1:])

    def overlay(
        self, index: int = 0, *, colormap: str = "glow", opacity: float = OPACITY, edges: bool = False
    ) -> Image.Image:
        """Lay one image's heat over the part of its picture that the model saw, at the picture's own resolution.

        ``edges`` brings the heat's borders to the picture's own edges (a guided filter), which looks finer and says no more.
        Raises OutputError where there is no picture: for signals and volumes.
        """
        picture, heat = self._picture(index), self._shown(index, colormap).cpu().numpy()
        if edges:
            coarse = min(a / b for a, b in zip(heat.shape, self.grid, strict=True))
            heat = follow_edges(heat, picture, max(1, round(coarse * picture.height / heat.shape[0] / 2)))
        return overlay(picture, heat, colormap=colormap, opacity=opacity)

    def _shown(self, index: int, colormap: str) -> Heatmaps:
        """Give the heat of one image; with a diverging colormap also what speaks against, 0.5 standing for nothing."""
        if colormap not in DIVERGING:
            return self.heatmap[index]
        signed = _resized(self.raw[index : index + 1], self.input_size)[0]
        return 0.5 + signed / (2 * signed.abs().max()).clamp_min(torch.finfo(signed.dtype).tiny)

    def panel(self, *, colormap: str = "glow", opacity: float = OPACITY, scale: int = 1) -> Image.Image:
        """Draw picture, prediction and overlay side by side, a row for each image; ``scale=2`` draws twice as large."""
        return Explanations([self]).panel(colormap=colormap, opacity=opacity, scale=scale)

    def save(
        self, path: str | Path, *, colormap: str = "glow", opacity: float = OPACITY, scale: int | None = None
    ) -> Path:
        """Write the panel (.png, .jpg, .webp, .tiff, .pdf) or the numbers (.npz, see :meth:`load`); all or nothing."""
        return Explanations([self]).save(path, colormap=colormap, opacity=opacity, scale=scale)

    @staticmethod
    def load(path: str | Path) -> "Explanation":
        """Read back what ``save("....npz")`` wrote; for a file of several explanations use ``Explanations.load``."""
        several = Explanations.load(path)
        if len(several) != 1:
            raise InputError(f"{path} holds {len(several)} explanations; read them with Explanations.load")
        only: Explanation = several[0]
        return only

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int | slice) -> "Explanation":
        """Take one image out as an explanation of a batch of one, or several as a smaller batch."""
        one = index if isinstance(index, slice) else self._only(index)
        return replace(
            self,
            raw=self.raw[one],
            scores=self.scores[one],
            targets=self.targets[one],
            pictures=self.pictures[one],
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

    def _picture(self, index: int) -> Image.Image:
        if not self.pictures:
            raise OutputError(
                f"the input has {len(self.input_size)} spatial axes and cannot be drawn as a picture; use .heatmap or .raw"
            )
        (picture,) = self.pictures[self._only(index)]
        return picture.as_seen()

    def _only(self, index: int) -> slice:
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"there {'are' if len(self) > 1 else 'is'} {len(self)} image{'s' * (len(self) > 1)}, no {index}"
            )
        return slice(index % len(self), index % len(self) + 1)


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
    def notes(self) -> tuple[str, ...]:
        """The notes of all, each once."""
        return tuple(dict.fromkeys(note for explanation in self for note in explanation.notes))

    def panel(self, *, colormap: str = "glow", opacity: float = OPACITY, scale: int = 1) -> Image.Image:
        """Draw picture, prediction and one overlay a layer side by side, a row for each image and question."""
        if not self:
            raise OutputError("there are no explanations to draw; ask for at least one layer")
        groups = [(group, index) for group in self._by_question() for index in range(len(group[0]))]
        methods = list(dict.fromkeys(explanation.method for explanation in self))
        asked = list(dict.fromkeys(_short(wording) for explanation in self for wording in explanation.targets))
        # what differs from row to row must stand in the headings
        differing = {"target": len(asked) > 1, "method": len(methods) > 1}
        rows = [_row(group, index, colormap, opacity, differing) for group, index in groups]
        title = ", ".join(asked) if len(asked) <= 3 else f"{len(asked)} questions"
        return panel(rows, title=f"{title} · {', '.join(methods)} · {self[0].model}", footer=self.notes, scale=scale)

    def save(
        self, path: str | Path, *, colormap: str = "glow", opacity: float = OPACITY, scale: int | None = None
    ) -> Path:
        """Write the panel (.png, .jpg, .webp, .tiff, .pdf) or the numbers (.npz); the file appears whole or not at all.

        The panel is drawn at ``scale`` (by default 2 in a PDF, which is for print, else 1).
        """
        path, kind = Path(path), file_kind(path)
        if kind == "NPZ":
            arrays = pack(self)
            return write_whole(path, lambda stream: np.savez_compressed(stream, allow_pickle=False, **arrays))
        drawn = self.panel(colormap=colormap, opacity=opacity, scale=scale or (2 if kind == "PDF" else 1))
        return write_whole(path, lambda stream: drawn.save(stream, format=kind, dpi=(200, 200), quality=95))

    @staticmethod
    def load(path: str | Path) -> "Explanations":
        """Read back what ``save("....npz")`` wrote. Raises InputError for a file that is missing or something else."""
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                fields = unpack(dict(arrays))
                for one in fields:
                    one["prediction"] = one["prediction"] and Prediction(**one["prediction"])
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


def _resized(maps: RawMaps, size: tuple[int, ...]) -> Heatmaps:
    if any(cells > pixels for cells, pixels in zip(maps.shape[1:], size, strict=True)):
        # finer than what is wanted, where bilinear steps over cells
        return F.interpolate(maps[:, None], size, mode="area")[:, 0]
    return F.interpolate(maps[:, None], size, mode=_RESIZE[len(size)], align_corners=False)[:, 0]


def _fused(group: Sequence[Explanation], how: str) -> Explanation:
    first = group[0]
    notes = dict.fromkeys(note for explanation in group for note in explanation.notes)
    return replace(
        first,
        raw=fused([explanation.heatmap for explanation in group], how),
        layer=", ".join(explanation.layer for explanation in group),
        method=f"{first.method}, {how} of layers" if len(group) > 1 else first.method,
        notes=tuple(notes),
    )


def min_max(maps: Heatmaps) -> Heatmaps:
    """Stretch each map of a batch to [0, 1] by itself; a flat one becomes zero, whatever its value."""
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    blank = is_flat(maps)[:, None]
    stretched = ((flat - low) / (high - low).masked_fill(blank, 1.0)).masked_fill(blank, 0.0)
    return stretched.reshape(maps.shape)


def is_flat(maps: Heatmaps) -> Flags:
    """Tell which maps of a batch have the same value everywhere, but for rounding."""
    flat = maps.flatten(1)
    return flat.amax(1) - flat.amin(1) <= _FLAT * flat.abs().amax(1)


def spelled(number: float) -> str:
    """Write a number as people read it: three digits, and an exponent only where it is very large or very small."""
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.3g}"


def _same_question(one: Explanation, other: Explanation) -> bool:
    return (one.method, one.targets) == (other.method, other.targets) and torch.equal(one.scores, other.scores)


def _short(name: str) -> str:
    """Keep the first of a class's synonyms, as lists of ImageNet's classes have them."""
    return name.partition(",")[0]


def _row(
    group: Sequence[Explanation], index: int, colormap: str, opacity: float, differing: dict[str, bool]
) -> list[Tile]:
    first = group[0]
    heading = _short(first.targets[index]) if differing["target"] else "picture"
    tiles = [picture_tile(first, index, heading), *prediction_tile(first, index)]
    for explanation in group:
        heading = explanation.layer + (f" · {explanation.method}" if differing["method"] else "")
        tiles.append(heat_tile(explanation, index, heading, colormap=colormap, opacity=opacity))
    return tiles


def picture_tile(explanation: Explanation, index: int, heading: str) -> Tile:
    """Show one image as the model saw it, with the question and its score."""
    picture = explanation._picture(index)
    cut = () if picture is explanation.pictures[index].image else ("the part that the model saw",)
    score = spelled(float(explanation.scores[index]))
    return Tile(picture, heading, (f"{explanation.targets[index]}, score {score}", *cut))


def heat_tile(
    explanation: Explanation, index: int, heading: str, *, colormap: str = "glow", opacity: float = OPACITY
) -> Tile:
    """Show one image's overlay, with the layer's grid and what the ends of the colour bar stand for."""
    low, high = explanation.scale(index)
    if colormap in DIVERGING:
        high = float(_resized(explanation.raw[index : index + 1], explanation.input_size).abs().max())
        low = -high
    drawn = explanation.overlay(index, colormap=colormap, opacity=opacity)
    grid = f"grid {' × '.join(map(str, explanation.grid))}"
    blank = () if explanation.heatmap[index].any() else ("blank: see the notes below",)
    bar = ColourBar(colormap, spelled(low) if abs(low) > high / 1000 else "0", spelled(high))
    return Tile(drawn, heading, (grid, *blank), bar)


def prediction_tile(explanation: Explanation, index: int, heading: str = "prediction") -> list[Tile]:
    """Show what the model said of one image, where its output could be read."""
    prediction, picture = explanation.prediction, explanation._picture(index)
    if prediction is None:
        return []
    names = prediction.names
    if prediction.probabilities is not None:
        asked = names.index(explanation.targets[index]) if explanation.targets[index] in names else None
        probabilities = prediction.probabilities[index].cpu().numpy()
        return [ranking_tile(names, probabilities, picture.size, heading, asked=asked)]
    if prediction.labels is None or prediction.labels.ndim != 3:
        return []
    labels = prediction.labels[index].cpu().numpy()
    background = background_class(names)
    painted = paint_labels(picture, labels, names, background=background)
    return [Tile(painted, heading, legend=label_legend(labels, names, background=background))]
