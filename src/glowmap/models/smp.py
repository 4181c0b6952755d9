"""segmentation_models_pytorch by name (``smp/Unet-resnet34``), and its models as modules that somebody brings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from glowmap.errors import ModelError, summarise
from glowmap.models._family import FAMILIES, RANDOM, Family, drawn_from, is_of, library
from glowmap.models.model import Model
from glowmap.models.preprocessing import ResizedAndNormalised
from glowmap.models.weights import cached, fetched, load_weights, offline, read_weights
from glowmap.registry import near_names

_PREFIX = "smp/"
_LIBRARY = "segmentation_models_pytorch"
_HALF_TRAINED = (
    "only the encoder is trained: decoder and head are drawn at random, and so is what they say of a picture"
)
_OWN_COLOURS = "the mean and std of this encoder are not known here: the model gets RGB in [0, 1] as it is"


def names() -> Sequence[str]:
    """List what segmentation_models_pytorch can build: each architecture with each of its own encoders."""
    smp = _smp()
    return [
        f"{_PREFIX}{kind.__name__}-{encoder}"
        for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()
        for encoder in smp.encoders.get_encoder_names()
    ]


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build an architecture on an encoder; ``default`` weights are the encoder's alone, those of a file tell the classes.

    Encoders of timm are ``smp/Unet-tu-NAME``. Raises ModelError for an unknown name, and where weights can be neither found
    nor downloaded.
    """
    smp = _smp()
    kind, _, encoder = name.removeprefix(_PREFIX).partition("-")
    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if kind.lower() not in architectures or not (encoder.startswith("tu-") or encoder in smp.encoders.encoders):
        raise ModelError(f"no model {name!r} in {_LIBRARY}; {near_names(name, names())}")
    settings = {} if str(weights) in ("default", "random") else {"classes": _classes(Path(weights))}
    with drawn_from(seed):
        trained = str(weights) == "default" and encoder.startswith("tu-")
        module = _made(smp, kind, encoder, trained=trained, **settings)
        if str(weights) == "default" and not trained:
            load_weights(module.encoder, _encoder_file(smp, encoder, "model.safetensors"))
            _encoder_file(smp, encoder, "config.json")
    cautions = {"default": (_HALF_TRAINED,), "random": (RANDOM,)}.get(str(weights), ())
    if settings:
        load_weights(module, Path(weights))
    preprocess = _preprocess(module, encoder)
    if preprocess is None:
        preprocess, cautions = ResizedAndNormalised(multiple=_multiple(module)), (*cautions, _OWN_COLOURS)
    return Model(module.eval(), name, preprocess, cautions=cautions)


def recognise(module: nn.Module) -> Model | None:
    """Know a segmentation model by its class, and its mean and std by its encoder where they are on this machine."""
    if not is_of(module, _LIBRARY) or not hasattr(module, "segmentation_head"):
        return None
    settings: Any = getattr(module, "_hub_mixin_config", None) or {}
    name = type(module).__name__
    return Model(module, name, _preprocess(module, settings.get("encoder_name", "")))


def _smp() -> Any:
    return library(_LIBRARY, "segmentation", "a model by a name of segmentation_models_pytorch")


def _preprocess(module: Any, encoder: str) -> ResizedAndNormalised | None:
    colours = _colours(_smp(), encoder)
    return None if colours is None else ResizedAndNormalised(None, *colours, _multiple(module))


def _multiple(module: Any) -> int:
    return int(module.encoder.output_stride) if module.requires_divisible_input_shape else 1


def _colours(smp: Any, encoder: str) -> tuple[list[float], list[float]] | None:
    """Look up an encoder's mean and std of RGB in [0, 1], without the network."""
    if encoder.startswith("tu-"):
        known = library("timm", "timm", "an encoder of timm").get_pretrained_cfg(encoder[3:])
        return None if known is None else (list(known.mean), list(known.std))
    place = _place(smp, encoder)
    found = None if place is None else cached(place["repo_id"], ["config.json"], place["revision"])
    if found is None:
        return None
    settings = json.loads(found.read_text())
    if max(settings.get("input_range", [0, 1])) != 1 or settings.get("input_space", "RGB") != "RGB":
        return None
    return list(settings["mean"]), list(settings["std"])


def _place(smp: Any, encoder: str) -> Any:
    """Say where an encoder's trained weights are: ImageNet's, or the first there are."""
    places = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {})
    return places.get("imagenet") or next(iter(places.values()), None)


def _encoder_file(smp: Any, encoder: str, file: str) -> Path:
    place = _place(smp, encoder)
    if place is None:
        raise ModelError(f"{_LIBRARY} has no trained weights of the encoder {encoder}; ask for weights='random'")
    remedy = "give a checkpoint of the whole model: weights='its path', or ask for weights='random'"
    return fetched(place["repo_id"], [file], remedy, place["revision"])


def _made(smp: Any, kind: str, encoder: str, *, trained: bool, **settings: int) -> Any:
    if trained:
        timm = library("timm", "timm", "an encoder of timm")
        known = timm.get_pretrained_cfg(encoder[3:]) if timm.is_model(encoder[3:]) else None
        if known is not None and known.hf_hub_id:
            fetched(known.hf_hub_id, ["model.safetensors"], "ask for weights='random', or give a checkpoint's path")
    try:
        with offline():  # what is needed is in the cache by now
            return smp.create_model(kind, encoder, encoder_weights=True if trained else None, **settings)
    except Exception as error:  # its many encoders refuse what they cannot in as many ways
        raise ModelError(
            f"a {kind} on the encoder {encoder} cannot be built ({summarise(error)}); choose another encoder"
        ) from error


def _classes(path: Path) -> int:
    """Read from a checkpoint how many classes the model has."""
    heads = [tensor for name, tensor in read_weights(path).items() if name.endswith("segmentation_head.0.weight")]
    return len(heads[0]) if heads else 1


FAMILIES.register("smp", Family(_LIBRARY, names, build, recognise))
