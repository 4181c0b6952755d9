"""Explanations as arrays and one text of JSON, and back: what an ``.npz`` file holds."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from glowmap.inputs import Picture, Shown, Signal, Volume
from glowmap.targets import Annotation

_TEXTS = ("layer", "method", "model", "targets", "input_size", "canvas", "cautions")
_SAID = ("labels", "probabilities")


def pack(explanations: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Lay explanations out as arrays; a picture that several share is stored once."""
    arrays: dict[str, NDArray[Any]] = {}
    pictures: dict[int, int] = {}
    described = []
    for i, explanation in enumerate(explanations):
        for picture in explanation.pictures:
            if id(picture) not in pictures:
                pictures[id(picture)] = len(pictures)
                pixels = np.asarray(picture.image) if isinstance(picture, Picture) else picture.values
                arrays[f"picture/{pictures[id(picture)]}"] = pixels
        tensors = {"raw": explanation.raw, "scores": explanation.scores}
        if explanation.prediction is not None:
            tensors |= {name: getattr(explanation.prediction, name) for name in _SAID}
        regions = {f"annotations/{image}/{at}": one.region for image, at, one in _numbered(explanation.annotations)}
        arrays |= {
            f"{i}/{name}": tensor.cpu().numpy() for name, tensor in (tensors | regions).items() if tensor is not None
        }
        described.append(
            {text: getattr(explanation, text) for text in _TEXTS}
            | {
                "pictures": [(pictures[id(one)], getattr(one, "seen", None)) for one in explanation.pictures],
                "annotations": [[(one.point, one.box) for one in image] for image in explanation.annotations],
                **_described(explanation.prediction),
            }
        )
    return arrays | {"explanations": np.array(json.dumps(described))}


def _numbered(annotations: Sequence[Sequence[Annotation]]) -> list[tuple[int, int, Annotation]]:
    return [(image, at, one) for image, several in enumerate(annotations) for at, one in enumerate(several)]


def _described(prediction: Any) -> dict[str, Any]:
    """Tell of a prediction what is no array."""
    if prediction is None:
        return {"names": ()}
    boxes = prediction.boxes
    return {"names": prediction.names, "boxes": boxes and [[asdict(one) for one in image] for image in boxes]}


def unpack(arrays: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Read the fields of each explanation; ``prediction`` is a dict of its own fields, or None."""
    fields = []
    shown: dict[int, Shown] = {}  # several explanations share one picture, as they did before
    for i, described in enumerate(json.loads(str(arrays["explanations"]))):
        said: dict[str, Any] = {
            name: torch.from_numpy(arrays[f"{i}/{name}"]) for name in _SAID if f"{i}/{name}" in arrays
        }
        names, boxes = tuple(described.pop("names")), described.pop("boxes", None)
        if boxes is not None:
            said["boxes"] = boxes
        annotations = tuple(
            tuple(
                _mark(point, box, arrays.get(f"{i}/annotations/{image}/{at}"))
                for at, (point, box) in enumerate(several)
            )
            for image, several in enumerate(described.pop("annotations", ()))
        )
        numbered = described.pop("pictures")
        for number, seen in numbered:
            shown.setdefault(number, _shown(arrays[f"picture/{number}"], seen))
        pictures = tuple(shown[number] for number, _ in numbered)
        texts = {text: tuple(value) if isinstance(value, list) else value for text, value in described.items()}
        raw, scores = (torch.from_numpy(arrays[f"{i}/{name}"]) for name in ("raw", "scores"))
        prediction = {"names": names, **said} if said else None
        own = {"raw": raw, "scores": scores, "pictures": pictures, "prediction": prediction, "annotations": annotations}
        fields.append(own | texts)
    return fields


def _shown(values: NDArray[Any], seen: Sequence[float] | None) -> Shown:
    """Read a picture, of which a part was seen, a clip or volume of four axes, or a signal of two."""
    if seen is not None:
        left, top, right, bottom = seen
        return Picture(Image.fromarray(values), (left, top, right, bottom))
    return Signal(values) if values.ndim == 2 else Volume(values)


def _mark(point: Sequence[float] | None, box: Sequence[float] | None, region: NDArray[np.bool_] | None) -> Annotation:
    if point is not None:
        across, down = point
        return Annotation(point=(across, down))
    if box is not None:
        left, top, right, bottom = box
        return Annotation(box=(left, top, right, bottom))
    return Annotation(region=None if region is None else torch.from_numpy(region))
