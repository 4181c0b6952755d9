"""The answer: raw maps, heatmaps and scores, drawn, saved and shown in a notebook."""

import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from glowmap.errors import InputError, OutputError
from glowmap.images import Picture
from glowmap.render import ColourBar, Tile, label_legend, overlay, paint_labels, panel, ranking_tile
from glowmap.shapes import Flags, Heatmaps, Labels, Probabilities, RawMaps, Scores, crossed

# Bilinear weights of one cell sum to 1 only up to rounding; a span below this share of the values is no heat but noise.
_FLAT = 1e-6
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
        positive = self.raw.relu()[:, None]
        if any(cells > pixels for cells, pixels in zip(self.grid, self.input_size, strict=True)):
            # finer than the input, where bilinear steps over cells
            return F.interpolate(positive, self.input_size, mode="area")[:, 0]
        return F.interpolate(positive, self.input_size, mode=_RESIZE[len(self.grid)], align_corners=False)[:, 0]

    def scale(self, index: int = 0) -> tuple[float, float]:
        """Tell which values of the rectified map the heatmap's 0 and 1 stand for, so that maps can be compared."""
        return float(self._positive[index].min()), float(self._positive[index].max())

    @property
    def grid(self) -> tuple[int, ...]:
        """The layer's rows and columns."""
        return tuple(self.raw.shape[1:])

    def overlay(self, index: int = 0, *, colormap: str = "glow", opacity: float = OPACITY) -> Image.Image:
        """Lay one image's heat over the part of its picture that the model saw, at the picture's own resolution.

        Raises OutputError where there is no picture: for signals and volumes.
        """
        return overlay(self._picture(index), self.heatmap[index].cpu().numpy(), colormap=colormap, opacity=opacity)

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
        title = ", ".join(asked) if len(asked) <= 3 else f"{len(asked)} classes"
        return panel(rows, title=f"{title} · {', '.join(methods)} · {self[0].model}", footer=self.notes, scale=scale)

    def save(
        self, path: str | Path, *, colormap: str = "glow", opacity: float = OPACITY, scale: int | None = None
    ) -> Path:
        """Write the panel (.png, .jpg, .webp, .tiff, .pdf) or the numbers (.npz); the file appears whole or not at all.

        The panel is drawn at ``scale`` (by default 2 in a PDF, which is for print, else 1).
        """
        path, kind = Path(path), file_kind(path)
        if kind == "NPZ":
            arrays = _packed(self)
            return _write(path, lambda stream: np.savez_compressed(stream, allow_pickle=False, **arrays))
        drawn = self.panel(colormap=colormap, opacity=opacity, scale=scale or (2 if kind == "PDF" else 1))
        return _write(path, lambda stream: drawn.save(stream, format=kind, dpi=(200, 200), quality=95))

    @staticmethod
    def load(path: str | Path) -> "Explanations":
        """Read back what ``save("....npz")`` wrote. Raises InputError for a file that is missing or something else."""
        try:
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                return _unpacked(dict(arrays))
        except Exception as error:  # zipfile, zlib, json and numpy each have their own
            raise InputError(
                f"{path} is no file of explanations ({type(error).__name__}); give one that save('....npz') wrote"
            ) from error

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


def file_kind(path: str | Path) -> str:
    """Tell by its ending what would be written to a path: NPZ, or one of Pillow's formats. OutputError for any other."""
    ending = Path(path).suffix.lower()
    formats = {ending: kind for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if ending == ".npz":
        return "NPZ"
    if ending not in formats:
        raise OutputError(
            f"{path} {f'ends in {ending}, which is no format for a panel' if ending else 'has no ending'}; "
            "end it in .png, .jpg, .webp, .tiff or .pdf for the panel, .npz for the numbers"
        )
    return formats[ending]


def _short(name: str) -> str:
    """Keep the first of a class's synonyms, as lists of ImageNet's classes have them."""
    return name.partition(",")[0]


def _row(
    group: Sequence[Explanation], index: int, colormap: str, opacity: float, differing: dict[str, bool]
) -> list[Tile]:
    first = group[0]
    wording, score = first.targets[index], spelled(float(first.scores[index]))
    picture = first._picture(index)
    cut = () if picture is first.pictures[index].image else ("the part that the model saw",)
    heading = _short(wording) if differing["target"] else "picture"
    tiles = [Tile(picture, heading, (f"{wording}, score {score}", *cut)), *_prediction_tile(first, index)]
    for explanation in group:
        low, high = explanation.scale(index)
        drawn = explanation.overlay(index, colormap=colormap, opacity=opacity)
        heading = explanation.layer + (f" · {explanation.method}" if differing["method"] else "")
        grid = f"grid {' × '.join(map(str, explanation.grid))}"
        blank = () if explanation.heatmap[index].any() else ("blank: see the notes below",)
        bar = ColourBar(colormap, spelled(low) if low > high / 1000 else "0", spelled(high))
        tiles.append(Tile(drawn, heading, (grid, *blank), bar))
    return tiles


def _prediction_tile(explanation: Explanation, index: int) -> list[Tile]:
    prediction, picture = explanation.prediction, explanation._picture(index)
    if prediction is None:
        return []
    names = prediction.names
    if prediction.probabilities is not None:
        asked = names.index(explanation.targets[index]) if explanation.targets[index] in names else None
        probabilities = prediction.probabilities[index].cpu().numpy()
        return [ranking_tile(names, probabilities, picture.size, "prediction", asked=asked)]
    if prediction.labels is None or prediction.labels.ndim != 3:
        return []
    labels = prediction.labels[index].cpu().numpy()
    background = 0 if names[0].strip("_").casefold() in ("background", "unlabelled", "unlabeled", "void") else None
    painted = paint_labels(picture, labels, names, background=background)
    return [Tile(painted, "prediction", legend=label_legend(labels, names, background=background))]


def _packed(explanations: Sequence[Explanation]) -> dict[str, NDArray[Any]]:
    """Lay explanations out as arrays and one text of JSON; a picture that several share is stored once."""
    arrays: dict[str, NDArray[Any]] = {}
    pictures: dict[int, int] = {}
    described = []
    for i, explanation in enumerate(explanations):
        for picture in explanation.pictures:
            if id(picture) not in pictures:
                pictures[id(picture)] = len(pictures)
                arrays[f"picture/{pictures[id(picture)]}"] = np.asarray(picture.image)
        said = explanation.prediction or Prediction(())
        tensors = {"raw": explanation.raw, "scores": explanation.scores} | {k: getattr(said, k) for k in _SAID}
        arrays |= {f"{i}/{name}": tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
        described.append(
            {field: getattr(explanation, field) for field in _TEXTS}
            | {
                "pictures": [(pictures[id(picture)], picture.seen) for picture in explanation.pictures],
                "names": said.names,
            }
        )
    return arrays | {"explanations": np.array(json.dumps(described))}


_TEXTS = ("layer", "method", "model", "targets", "input_size", "notes")
_SAID = ("labels", "probabilities")


def _unpacked(arrays: dict[str, NDArray[Any]]) -> Explanations:
    explanations = []
    for i, described in enumerate(json.loads(str(arrays["explanations"]))):
        said = {name: torch.from_numpy(arrays[f"{i}/{name}"]) for name in _SAID if f"{i}/{name}" in arrays}
        names = tuple(described.pop("names"))
        raw, scores = (torch.from_numpy(arrays[f"{i}/{name}"]) for name in ("raw", "scores"))
        pictures = tuple(
            Picture(Image.fromarray(arrays[f"picture/{number}"]), tuple(seen))
            for number, seen in described.pop("pictures")
        )
        texts: dict[str, Any] = {
            field: tuple(value) if isinstance(value, list) else value for field, value in described.items()
        }
        prediction = Prediction(names, **said) if said else None
        explanations.append(Explanation(raw, scores, pictures=pictures, prediction=prediction, **texts))
    return Explanations(explanations)


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> Path:
    """Write beside the path and rename, so that an interrupted or failed write leaves no half of a file."""
    place = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    part = place.with_name(f".glowmap-{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("xb") as stream:
            write(stream)
        part.replace(place)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError | ValueError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path} cannot be written ({reason}); choose a folder that exists and is writable, or .png"
        ) from error
    return path
