"""torchvision's models by name (classification, segmentation, detection, video), with their preprocessing and class names."""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glowmap.errors import ModelError
from glowmap.models._family import FAMILIES, RANDOM, Family, drawn_from, is_of, library
from glowmap.models.model import Model
from glowmap.models.preprocessing import Clips, Preprocess, Preset, cut
from glowmap.models.torchvision.detectors import candidates_of, detector_in, watched
from glowmap.models.torchvision.detectors import lays_out_anew as lays_out_anew
from glowmap.models.weights import load_weights, read_weights
from glowmap.outputs import OutputReaders
from glowmap.registry import near_names


def names() -> Sequence[str]:
    """List what torchvision can build; MissingExtra where it is not installed."""
    models = _torchvision().models
    shelves = (models, models.segmentation, models.detection, models.video)
    return [name for shelf in shelves for name in models.list_models(module=shelf)]


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
    cautions: tuple[str, ...] = ()
    if str(weights) == "default":
        module = _downloaded(name, default)
    elif str(weights) == "random":
        module = _bare(name, seed, auxiliary=False)
        cautions = (RANDOM,)
    else:
        path = Path(weights)
        module = _bare(name, seed, auxiliary=any(key.startswith("aux_classifier") for key in read_weights(path)))
        load_weights(module, path)
    built = Model(module.eval(), name, _preprocess(default.transforms()), tuple(default.meta["categories"]), cautions)
    return _detecting(built)


def recognise(module: nn.Module) -> Model | None:
    """Know a torchvision model, and any that is built on its detectors; a bare one does not say what its classes are."""
    if not (is_of(module, "torchvision") or lays_out_anew(module)):
        return None
    return _detecting(Model(module, type(module).__name__))


def _detecting(model: Model) -> Model:
    """Add how a detector's candidates are read, or what to mind where they are not."""
    detector = detector_in(model.module)
    if detector is not None:
        return replace(
            model, readers=OutputReaders(candidates=candidates_of(detector)), around_forward=watched(detector)
        )
    if not lays_out_anew(model.module):
        return model
    caution = (
        "this detector resizes and pads its input inside, and the map covers the padded canvas: "
        "away from the top left corner the heat lies up to a few per cent off"
    )
    return replace(model, cautions=(*model.cautions, caution))


def _torchvision() -> Any:
    return library("torchvision", "torchvision", "a model by a torchvision name")


def _downloaded(name: str, weights: Any) -> nn.Module:
    try:
        module: nn.Module = _torchvision().models.get_model(name, weights=weights)
    except OSError as error:  # urllib's errors are OSErrors
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"the weights of {name} are not on this machine and cannot be downloaded ({error}); "
            f"put {weights.url} into {place}, or ask for weights='random' or a file of your own"
        ) from error
    return module


def _bare(name: str, seed: int, *, auxiliary: bool) -> nn.Module:
    """Build without weights; the random ones come from the seed and leave the global generator alone."""
    models = _torchvision().models
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    options = {"weights_backbone": None, "aux_loss": auxiliary}
    with drawn_from(seed), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # Inception and GoogLeNet announce a change of their initialisation
        module: nn.Module = models.get_model(
            name, weights=None, **{option: value for option, value in options.items() if option in accepted}
        )
    return module


def _preprocess(transform: Any) -> Preprocess:
    """Keep a preset to what a preprocessing step promises: it may resize the shorter side, then cut out the centre."""
    if type(transform).__name__ == "VideoClassification":
        return Clips(transform)
    transforms = _torchvision().transforms
    steps = []
    if getattr(transform, "resize_size", None):
        steps.append(transforms.Resize(transform.resize_size))
    if hasattr(transform, "crop_size"):
        steps.append(transforms.CenterCrop(transform.crop_size))
    mean, std = getattr(transform, "mean", 0.0), getattr(transform, "std", 1.0)
    return Preset(transform, partial(cut, steps), mean, std)


FAMILIES.register("torchvision", Family("torchvision", names, build, recognise))
