"""segmentation_models_pytorch, by name (``smp/Unet-resnet34``) and as modules."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from glowmap.errors import ModelError, summarise
from glowmap.models._family import (
    FAMILIES,
    PARTLY_RANDOM,
    RANDOM,
    UNNORMALISED,
    Family,
    import_library,
    is_from,
    seeded,
)
from glowmap.models.model import Model
from glowmap.models.preprocessing import ResizedAndNormalised
from glowmap.models.weights import cached, fetched, load_weights, offline, read_weights
from glowmap.registry import near_names

_PREFIX = "smp/"
_LIBRARY = "segmentation_models_pytorch"
_HALF_TRAINED = PARTLY_RANDOM(
    "only the encoder is trained: the weights of decoder and head are random, and so are the class scores"
)
_UNKNOWN_COLOURS = UNNORMALISED(
    "the mean and std of this encoder are not known here: the model gets RGB in [0, 1] without normalisation"
)


def names() -> Sequence[str]:
    """List the models that segmentation_models_pytorch can build: each architecture with each encoder."""
    smp = _smp()
    return [
        f"{_PREFIX}{kind.__name__}-{encoder}"
        for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()
        for encoder in smp.encoders.get_encoder_names()
    ]


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build an architecture with an encoder. ``default`` weights are the encoder's alone; a checkpoint sets the class count.

    Encoders of timm are ``smp/Unet-tu-NAME``. Raises ModelError for an unknown name, and where weights can be neither found
    nor downloaded.
    """
    smp = _smp()
    kind, _, encoder = name.removeprefix(_PREFIX).partition("-")
    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if kind.lower() not in architectures or not (encoder.startswith("tu-") or encoder in smp.encoders.encoders):
        raise ModelError(f"no model {name!r} in {_LIBRARY}; {near_names(name, names())}")
    settings = {} if str(weights) in ("default", "random") else {"classes": _classes(Path(weights))}
    with seeded(seed):
        is_trained = str(weights) == "default" and encoder.startswith("tu-")
        module = _made(smp, kind, encoder, trained=is_trained, **settings)
        if str(weights) == "default" and not is_trained:
            load_weights(module.encoder, _encoder_file(smp, encoder, "model.safetensors"))
            _encoder_file(smp, encoder, "config.json")
    cautions = {"default": (_HALF_TRAINED,), "random": (RANDOM,)}.get(str(weights), ())
    if settings:
        load_weights(module, Path(weights))
    preprocess = _preprocess(module, encoder)
    if preprocess is None:
        preprocess, cautions = ResizedAndNormalised(multiple=_multiple(module)), (*cautions, _UNKNOWN_COLOURS)
    return Model(module.eval(), name, preprocess, cautions=cautions)


def recognise(module: nn.Module) -> Model | None:
    """Recognise a segmentation model by its class; its encoder tells mean and std where these are on this machine."""
    if not is_from(module, _LIBRARY) or not hasattr(module, "segmentation_head"):
        return None
    settings: Any = getattr(module, "_hub_mixin_config", None) or {}
    return Model(module, type(module).__name__, _preprocess(module, settings.get("encoder_name", "")))


def _smp() -> Any:
    return import_library(_LIBRARY, "segmentation", "a model by a name of segmentation_models_pytorch")


def _preprocess(module: Any, encoder: str) -> ResizedAndNormalised | None:
    colours = _colours(_smp(), encoder)
    return None if colours is None else ResizedAndNormalised(None, *colours, _multiple(module))


def _multiple(module: Any) -> int:
    return int(module.encoder.output_stride) if module.requires_divisible_input_shape else 1


def _colours(smp: Any, encoder: str) -> tuple[list[float], list[float]] | None:
    """Look up an encoder's mean and std of RGB in [0, 1], without the network."""
    if encoder.startswith("tu-"):
        config = import_library("timm", "timm", "an encoder of timm").get_pretrained_cfg(encoder[3:])
        return None if config is None else (list(config.mean), list(config.std))
    source = _weights_source(smp, encoder)
    path = None if source is None else cached(source["repo_id"], ["config.json"], source["revision"])
    if path is None:
        return None
    settings = json.loads(path.read_text())
    if max(settings.get("input_range", [0, 1])) != 1 or settings.get("input_space", "RGB") != "RGB":
        return None
    return list(settings["mean"]), list(settings["std"])


def _weights_source(smp: Any, encoder: str) -> Any:
    """Return the hub repository of an encoder's trained weights: ImageNet's, or the first; None without any."""
    sources = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {})
    return sources.get("imagenet") or next(iter(sources.values()), None)


def _encoder_file(smp: Any, encoder: str, file: str) -> Path:
    source = _weights_source(smp, encoder)
    if source is None:
        raise ModelError(f"{_LIBRARY} has no trained weights of the encoder {encoder}; choose weights='random'")
    remedy = "give a checkpoint of the whole model: weights='its path', or choose weights='random'"
    return fetched(source["repo_id"], [file], remedy, source["revision"])


def _made(smp: Any, kind: str, encoder: str, *, trained: bool, **settings: int) -> Any:
    if trained:
        timm = import_library("timm", "timm", "an encoder of timm")
        config = timm.get_pretrained_cfg(encoder[3:]) if timm.is_model(encoder[3:]) else None
        if config is not None and config.hf_hub_id:
            fetched(config.hf_hub_id, ["model.safetensors"], "choose weights='random', or give a checkpoint's path")
    try:
        with offline():  # the files are in the cache by now
            return smp.create_model(kind, encoder, encoder_weights=True if trained else None, **settings)
    except Exception as error:  # encoders raise many types of errors
        raise ModelError(
            f"a {kind} on the encoder {encoder} cannot be built ({summarise(error)}); choose another encoder"
        ) from error


def _classes(path: Path) -> int:
    """Read the number of classes from a checkpoint."""
    heads = [tensor for name, tensor in read_weights(path).items() if name.endswith("segmentation_head.0.weight")]
    return len(heads[0]) if heads else 1


FAMILIES.register("smp", Family(_LIBRARY, recognise, build, names))
