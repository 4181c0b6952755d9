"""Explanations as arrays and one text of JSON, and back: what an ``.npz`` file holds."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from glowmap.images import Picture, Shown, Signal, Volume

_TEXTS = ("layer", "method", "model", "targets", "input_size", "canvas", "notes")
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
        arrays |= {f"{i}/{name}": tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
        described.append(
            {text: getattr(explanation, text) for text in _TEXTS}
            | {
                "pictures": [(pictures[id(one)], getattr(one, "seen", None)) for one in explanation.pictures],
                "names": explanation.prediction.names if explanation.prediction is not None else (),
            }
        )
    return arrays | {"explanations": np.array(json.dumps(described))}


def unpack(arrays: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Read the fields of each explanation; ``prediction`` is a dict of its own fields, or None."""
    fields = []
    shown: dict[int, Shown] = {}  # several explanations share one picture, as they did before
    for i, described in enumerate(json.loads(str(arrays["explanations"]))):
        said: dict[str, Any] = {
            name: torch.from_numpy(arrays[f"{i}/{name}"]) for name in _SAID if f"{i}/{name}" in arrays
        }
        names = tuple(described.pop("names"))
        numbered = described.pop("pictures")
        for number, seen in numbered:
            shown.setdefault(number, _shown(arrays[f"picture/{number}"], seen))
        pictures = tuple(shown[number] for number, _ in numbered)
        texts = {text: tuple(value) if isinstance(value, list) else value for text, value in described.items()}
        raw, scores = (torch.from_numpy(arrays[f"{i}/{name}"]) for name in ("raw", "scores"))
        prediction = {"names": names, **said} if said else None
        fields.append({"raw": raw, "scores": scores, "pictures": pictures, "prediction": prediction, **texts})
    return fields


def _shown(values: NDArray[Any], seen: Sequence[float] | None) -> Shown:
    """Read a picture, of which a part was seen, a clip or volume of four axes, or a signal of two."""
    if seen is not None:
        left, top, right, bottom = seen
        return Picture(Image.fromarray(values), (left, top, right, bottom))
    return Signal(values) if values.ndim == 2 else Volume(values)
