"""Explanations as arrays and one text of JSON, and back: the contents of an ``.npz`` file."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from glowmap.cautions import CautionKind
from glowmap.inputs import Drawable, Picture, Signal, Volume
from glowmap.outputs import Prediction
from glowmap.targets import Annotation

_TEXTS = ("layer", "method", "model", "target_names", "input_size", "canvas")
_PREDICTED = ("labels", "probabilities")


def pack(explanations: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Write explanations as arrays. A picture that several share is stored once."""
    arrays: dict[str, NDArray[Any]] = {}
    pictures: dict[int, int] = {}  # the number of each stored picture, by id
    texts = []
    for i, explanation in enumerate(explanations):
        for picture in explanation.pictures:
            if id(picture) not in pictures:
                pictures[id(picture)] = len(pictures)
                pixels = np.asarray(picture.image) if isinstance(picture, Picture) else picture.values
                arrays[f"picture/{pictures[id(picture)]}"] = pixels
        tensors = {"raw": explanation.raw, "scores": explanation.scores}
        if explanation.prediction is not None:
            tensors |= {name: getattr(explanation.prediction, name) for name in _PREDICTED}
        for image, annotations in enumerate(explanation.annotations):
            tensors |= {f"annotations/{image}/{j}": annotation.region for j, annotation in enumerate(annotations)}
        arrays |= {f"{i}/{name}": tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}
        numbers = [(pictures[id(picture)], getattr(picture, "visible", None)) for picture in explanation.pictures]
        outlines = [[(annotation.point, annotation.box) for annotation in image] for image in explanation.annotations]
        cautions = [(caution, asdict(caution.kind)) for caution in explanation.cautions]
        fields = {name: getattr(explanation, name) for name in _TEXTS} | {"cautions": cautions}
        texts.append(
            fields | {"pictures": numbers, "annotations": outlines} | _prediction_fields(explanation.prediction)
        )
    return arrays | {"explanations": np.array(json.dumps(texts))}


def _prediction_fields(prediction: Prediction | None) -> dict[str, Any]:
    """Return the fields of a prediction that are no arrays."""
    if prediction is None:
        return {"names": ()}
    boxes = prediction.boxes
    return {"names": prediction.names, "boxes": boxes and [[asdict(box) for box in image] for image in boxes]}


def unpack(arrays: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Read the fields of each explanation."""
    explanations = []
    pictures: dict[int, Drawable] = {}  # by number: explanations share a picture again
    for i, texts in enumerate(json.loads(str(arrays["explanations"]))):
        tensors = {
            name: torch.from_numpy(arrays[f"{i}/{name}"])
            for name in ("raw", "scores", *_PREDICTED)
            if f"{i}/{name}" in arrays
        }
        predicted: dict[str, Any] = {name: tensors.pop(name) for name in _PREDICTED if name in tensors}
        names, boxes = tuple(texts.pop("names")), texts.pop("boxes", None)
        if boxes is not None:
            predicted["boxes"] = boxes
        annotations = tuple(
            tuple(
                _annotation(point, box, arrays.get(f"{i}/annotations/{image}/{j}"))
                for j, (point, box) in enumerate(outlines)
            )
            for image, outlines in enumerate(texts.pop("annotations", ()))
        )
        cautions = tuple(CautionKind(**kind)(sentence) for sentence, kind in texts.pop("cautions"))
        numbers = texts.pop("pictures")
        for number, visible in numbers:
            pictures.setdefault(number, _picture(arrays[f"picture/{number}"], visible))
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in texts.items()}
        explanations.append(
            {
                **fields,
                **tensors,
                "pictures": tuple(pictures[number] for number, _ in numbers),
                "prediction": Prediction.read({"names": names, **predicted}) if predicted else None,
                "cautions": cautions,
                "annotations": annotations,
            }
        )
    return explanations


def _picture(values: NDArray[Any], visible: Sequence[float] | None) -> Drawable:
    """Read a picture with its visible part, a clip or volume of four axes, or a signal of two."""
    if visible is not None:
        left, top, right, bottom = visible
        return Picture(Image.fromarray(values), (left, top, right, bottom))
    return Signal(values) if values.ndim == 2 else Volume(values)


def _annotation(
    point: Sequence[float] | None, box: Sequence[float] | None, region: NDArray[np.bool_] | None
) -> Annotation:
    if point is not None:
        across, down = point
        return Annotation(point=(across, down))
    if box is not None:
        left, top, right, bottom = box
        return Annotation(box=(left, top, right, bottom))
    return Annotation(region=None if region is None else torch.from_numpy(region))
