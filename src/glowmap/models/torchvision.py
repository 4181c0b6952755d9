"""torchvision's classification and segmentation models by name, with their own preprocessing and class names."""

import copy
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from glowmap.errors import MissingExtra, ModelError
from glowmap.images import Picture, refuse_gigantic, whole
from glowmap.models._family import FAMILIES, RANDOM, Colours, Family, Model
from glowmap.models.plain import ResizedAndNormalised, load_weights, read_weights
from glowmap.shelf import near_names


def names() -> Sequence[str]:
    """List what torchvision can build; MissingExtra where it is not installed."""
    models = _torchvision().models
    shelves = (models, models.segmentation)
    return [name for shelf in shelves for name in models.list_models(module=shelf)]


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build a model by name with its ``default`` weights, ``random`` ones drawn from the seed, or those of a file.

    Raises ModelError for an unknown name, and where weights can be neither found nor downloaded.
    """
    models = _torchvision().models
    if name not in names():
        raise ModelError(
            f"no model {name!r} in torchvision; {near_names(name, names())}, or FILE.py:factory for your own"
        )
    default = models.get_model_weights(name).DEFAULT
    notes: tuple[str, ...] = ()
    if str(weights) == "default":
        module = _downloaded(name, default)
    elif str(weights) == "random":
        module = _bare(name, seed, auxiliary=False)
        notes = (RANDOM,)
    else:
        path = Path(weights)
        module = _bare(name, seed, auxiliary=any(key.startswith("aux_classifier") for key in read_weights(path)))
        load_weights(module, path)
    return Model(module.eval(), name, Preset(default.transforms()), tuple(default.meta["categories"]), notes)


def cautions(module: nn.Module) -> tuple[str, ...]:
    """Say what to mind about torchvision's detectors, which lay a batch out anew inside."""
    if not any(type(part).__name__ == "GeneralizedRCNNTransform" for part in module.modules()):
        return ()
    return (
        "this detector resizes and pads its input inside, and the map covers the padded canvas: "
        "away from the top left corner the heat lies up to a few per cent off",
    )


def _torchvision() -> Any:
    try:
        import torchvision
    except ImportError:
        raise MissingExtra("torchvision", "torchvision", "a model by a torchvision name") from None
    return torchvision


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
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # Inception and GoogLeNet announce a change of their initialisation
        torch.manual_seed(seed)
        module: nn.Module = models.get_model(
            name, weights=None, **{option: value for option, value in options.items() if option in accepted}
        )
    return module


@dataclass(frozen=True)
class Preset:
    """The library's own transform for the values, and the part of the picture that it keeps."""

    transform: Any

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]:
        self._refuse_stretched(picture)
        return self.transform(picture), self._seen(picture)

    def normalised(self, mean: Colours | None, std: Colours | None) -> "Preset":
        """Copy with another mean or standard deviation; None keeps the own one."""
        own = ResizedAndNormalised(None, self.mean, self.std).normalised(mean, std)
        transform = copy.copy(self.transform)
        transform.mean, transform.std = ([float(c) for c in np.broadcast_to(v, 3)] for v in (own.mean, own.std))
        return Preset(transform)

    @property
    def mean(self) -> Colours:
        return getattr(self.transform, "mean", 0.0)

    @property
    def std(self) -> Colours:
        return getattr(self.transform, "std", 1.0)

    def _refuse_stretched(self, picture: Image.Image) -> None:
        """Raise InputError for a narrow strip that, enlarged until its shorter side fits, fits no memory."""
        if getattr(self.transform, "resize_size", None):
            shorter, longer = sorted(picture.size)
            enlarged = longer * self.transform.resize_size[0] // shorter
            refuse_gigantic(
                (enlarged, self.transform.resize_size[0]), f"the picture of {picture.size}, resized for this model,"
            )

    def _seen(self, picture: Image.Image) -> Picture:
        """Undo "shorter side to resize_size, then the centre's crop_size" in the picture's own pixels."""
        if not hasattr(self.transform, "crop_size"):
            return whole(picture)
        shorter, crop = self.transform.resize_size[0], self.transform.crop_size[0]
        width, height = picture.size
        resized = [int(shorter * side / min(width, height)) for side in (width, height)]
        left, top = (round((side - crop) / 2) for side in resized)
        across, down = width / resized[0], height / resized[1]
        return Picture(picture, (left * across, top * down, (left + crop) * across, (top + crop) * down))


FAMILIES.put("torchvision", Family("torchvision", names, build))
