"""timm's models, by name (``timm/convnext_tiny``, with a tag or without) and as modules."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glowmap.errors import ModelError, Remedy, TargetError, summarise
from glowmap.models._family import FAMILIES, RANDOM, Family, import_library, is_from, ordered_names, seeded
from glowmap.models.model import Model
from glowmap.models.preprocessing import Transform, crop_box
from glowmap.models.weights import fetched, load_weights
from glowmap.outputs import OutputReaders
from glowmap.registry import near_names

_PREFIX = "timm/"
_FILES = ("model.safetensors", "pytorch_model.bin")


def names() -> Sequence[str]:
    """List the models that timm can build. Raises MissingExtra where it is not installed."""
    return [_PREFIX + name for name in _timm().list_models()]


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build a model by name with its ``default`` weights, ``random`` ones drawn from the seed, or those of a file.

    The class names are ImageNet's where the model has as many classes as one of its editions. Raises ModelError for an unknown
    name or tag, and where weights can be neither found nor downloaded.
    """
    timm, short = _timm(), name.removeprefix(_PREFIX)
    if not timm.is_model(short):
        raise ModelError(f"no model {short!r} in timm; {near_names(name, names())}")
    try:
        config = timm.get_pretrained_cfg(short)
    except RuntimeError as error:
        tags = [_PREFIX + tagged for tagged in timm.list_pretrained(short.partition(".")[0] + "*")]
        raise ModelError(f"timm has no such weights as {short!r}; {near_names(name, tags)}") from error
    with seeded(seed):
        is_trained = str(weights) == "default"
        module = _trained(timm, short, config) if is_trained else timm.create_model(short, pretrained=False)
    if str(weights) not in ("default", "random"):
        load_weights(module, Path(weights))
    cautions = (RANDOM,) if str(weights) == "random" else ()
    classes = _imagenet_names(timm, module)
    return Model(module.eval(), name, _transform(module), classes, cautions, _readers(module))


def recognise(module: nn.Module) -> Model | None:
    """Recognise a timm model by its configuration, which has the preprocessing where timm has trained weights for it."""
    if not is_from(module, "timm") or not getattr(module, "pretrained_cfg", None):
        return None
    config = _configuration(module)
    is_pretrained = any(config.get(source) for source in ("url", "file", "hf_hub_id"))
    labels = config.get("label_descriptions") or config.get("label_names")
    if isinstance(labels, dict) and config.get("label_names"):
        labels = [labels.get(label, label) for label in config["label_names"]]
    return Model(
        module,
        type(module).__name__,
        _transform(module) if is_pretrained else None,
        ordered_names(labels, getattr(module, "num_classes", None)),
        readers=_readers(module),
    )


def _timm() -> Any:
    return import_library("timm", "timm", "a model by a timm name")


def _configuration(module: nn.Module) -> dict[str, Any]:
    config: Any = module.pretrained_cfg
    settings: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    return settings


def _transform(module: nn.Module) -> Transform:
    """Return timm's own transform for inference."""
    data = import_library("timm.data", "timm", "preprocessing as timm does it")
    settings = data.resolve_model_data_config(module)
    transform = data.create_transform(**settings, is_training=False)
    return Transform(transform, partial(crop_box, transform.transforms), settings["mean"], settings["std"])


def _readers(module: nn.Module) -> OutputReaders:
    return OutputReaders(_no_classes) if getattr(module, "num_classes", None) == 0 else OutputReaders()


def _no_classes(output: Any) -> Tensor:
    raise TargetError(
        "this timm model has no class head (num_classes=0), so its output holds features, not class scores",
        remedy=Remedy(
            "pass target=a callable from the features to one score per image, or build the model with its classes"
        ),
    )


def _trained(timm: Any, short: str, config: Any) -> nn.Module:
    remedy = f"save that file on this machine and give weights='its path' with timm/{short}, or choose weights='random'"
    overlay = {}
    if config is None or not config.has_weights:
        raise ModelError(
            f"timm has no trained weights for {short}; choose weights='random', or give a checkpoint's path"
        )
    if config.hf_hub_id and config.custom_load != "hf":
        files = (config.hf_hub_filename,) if config.hf_hub_filename else _FILES
        overlay = {"file": str(fetched(config.hf_hub_id, files, remedy))}
    try:
        module: nn.Module = timm.create_model(short, pretrained=True, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"the weights of timm/{short} cannot be loaded ({summarise(error)}); {remedy}") from error
    return module


def _imagenet_names(timm: Any, module: nn.Module) -> tuple[str, ...] | None:
    edition = timm.data.infer_imagenet_subset(module)
    return None if edition is None else tuple(timm.data.ImageNetInfo(edition).label_descriptions())


FAMILIES.register("timm", Family("timm", recognise, build, names))
