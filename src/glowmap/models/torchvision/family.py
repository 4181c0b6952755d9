"""torchvision's models, by name (classification, segmentation, detection, video) and as modules."""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glowmap.cautions import Caution, caution_kind
from glowmap.errors import ModelError
from glowmap.models._family import FAMILIES, RANDOM, Family, import_library, is_from, seeded
from glowmap.models.model import Model
from glowmap.models.preprocessing import ClipTransform, Preprocess, Transform, crop_box
from glowmap.models.torchvision.detectors import candidates_reader, detector_in, has_detector_transform, recorded
from glowmap.models.weights import load_weights, read_weights
from glowmap.outputs import OutputReaders
from glowmap.registry import near_names

_PADDED = caution_kind("map-on-padded-input", "caution", "Give pictures of the size that the detector works at.")


def names() -> Sequence[str]:
    """List the models that torchvision can build. Raises MissingExtra where it is not installed."""
    models = _torchvision().models
    modules = (models, models.segmentation, models.detection, models.video)
    return [name for module in modules for name in models.list_models(module=module)]


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build a model by name with its ``default`` weights, ``random`` ones drawn from the seed, or those of a file.

    Raises ModelError for an unknown name, and where weights can be neither found nor downloaded.
    """
    models = _torchvision().models
    if name not in names():
        raise ModelError(
            f"no model {name!r} in torchvision; {near_names(name, [*names(), 'demo'])}, or FILE.py:factory for your own"
        )
    default = models.get_model_weights(name).DEFAULT
    cautions: tuple[Caution, ...] = ()
    if str(weights) == "default":
        module = _downloaded(name, default)
    elif str(weights) == "random":
        module = _untrained(name, seed, has_auxiliary_head=False)
        cautions = (RANDOM,)
    else:
        path = Path(weights)
        has_auxiliary_head = any(key.startswith("aux_classifier") for key in read_weights(path))
        module = _untrained(name, seed, has_auxiliary_head=has_auxiliary_head)
        load_weights(module, path)
    preprocess = _preprocess(default.transforms())
    return _with_detections(Model(module.eval(), name, preprocess, tuple(default.meta["categories"]), cautions))


def recognise(module: nn.Module) -> Model | None:
    """Recognise a torchvision model, and any module built on its detectors. Their class names are unknown."""
    if not (is_from(module, "torchvision") or has_detector_transform(module)):
        return None
    return _with_detections(Model(module, type(module).__name__))


def _with_detections(model: Model) -> Model:
    """Add the reader of a detector's candidates; a caution where the detector is not a known one."""
    if not has_detector_transform(model.module):
        return model
    detector = detector_in(model.module)
    if detector is not None:
        return replace(
            model,
            readers=OutputReaders(candidates=candidates_reader(detector)),
            around_forward=recorded(detector),
            normalises_inside=True,
        )
    caution = _PADDED(
        "this detector resizes and pads its input inside, and the map covers the padded input: "
        "away from the top left corner the heat is off by up to a few per cent"
    )
    return replace(model, cautions=(*model.cautions, caution), normalises_inside=True)


def _torchvision() -> Any:
    return import_library("torchvision", "torchvision", "a model by a torchvision name")


def _downloaded(name: str, weights: Any) -> nn.Module:
    try:
        module: nn.Module = _torchvision().models.get_model(name, weights=weights)
    except OSError as error:  # urllib's errors are OSErrors
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"the weights of {name} are not on this machine and cannot be downloaded ({error}); "
            f"put {weights.url} into {folder}, or choose weights='random' or a checkpoint's path"
        ) from error
    return module


def _untrained(name: str, seed: int, *, has_auxiliary_head: bool) -> nn.Module:
    """Build a model with random weights drawn from the seed."""
    models = _torchvision().models
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    options = {"weights_backbone": None, "aux_loss": has_auxiliary_head}
    with seeded(seed), warnings.catch_warnings():
        # Inception and GoogLeNet warn that their initialisation will change
        warnings.simplefilter("ignore", FutureWarning)
        module: nn.Module = models.get_model(
            name, weights=None, **{option: value for option, value in options.items() if option in accepted}
        )
    return module


def _preprocess(transform: Any) -> Preprocess:
    """Turn one of torchvision's presets, which resize and crop, into a preprocessing step."""
    if type(transform).__name__ == "VideoClassification":
        return ClipTransform(transform)
    transforms = _torchvision().transforms
    steps = []
    if getattr(transform, "resize_size", None):
        steps.append(transforms.Resize(transform.resize_size))
    if hasattr(transform, "crop_size"):
        steps.append(transforms.CenterCrop(transform.crop_size))
    mean, std = getattr(transform, "mean", 0.0), getattr(transform, "std", 1.0)
    return Transform(transform, partial(crop_box, steps), mean, std)


FAMILIES.register("torchvision", Family("torchvision", recognise, build, names, has_plain_names=True))
