"""timm's models by name (``timm/convnext_tiny``, with a tag or without), and as modules that somebody brings."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glowmap.errors import ModelError, Remedy, TargetError, summarise
from glowmap.models._family import FAMILIES, RANDOM, Family, drawn_from, is_of, library, names_in_order
from glowmap.models.model import Model
from glowmap.models.preprocessing import Preset, cut
from glowmap.models.weights import fetched, load_weights
from glowmap.outputs import OutputReaders
from glowmap.registry import near_names

_PREFIX = "timm/"
_FILES = ("model.safetensors", "pytorch_model.bin")


def names() -> Sequence[str]:
    """List what timm can build; MissingExtra where it is not installed."""
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
        known = timm.get_pretrained_cfg(short)
    except RuntimeError as error:
        tags = [_PREFIX + tagged for tagged in timm.list_pretrained(short.partition(".")[0] + "*")]
        raise ModelError(f"timm has no such weights as {short!r}; {near_names(name, tags)}") from error
    cautions: tuple[str, ...] = ()
    with drawn_from(seed):
        trained = str(weights) == "default"
        module = _trained(timm, short, known) if trained else timm.create_model(short, pretrained=False)
    if str(weights) == "random":
        cautions = (RANDOM,)
    elif str(weights) != "default":
        load_weights(module, Path(weights))
    classes = _imagenet_names(timm, module)
    return Model(module.eval(), name, _preset(module), classes, cautions, readers=_readers(module))


def recognise(module: nn.Module) -> Model | None:
    """Know a timm model by its configuration; where timm has trained weights for it, that says how pictures become its input."""
    if not is_of(module, "timm") or not getattr(module, "pretrained_cfg", None):
        return None
    own = _configuration(module)
    preprocess = _preset(module) if any(own.get(source) for source in ("url", "file", "hf_hub_id")) else None
    told_names = own.get("label_descriptions") or own.get("label_names")
    if isinstance(told_names, dict) and own.get("label_names"):
        told_names = [told_names.get(label, label) for label in own["label_names"]]
    classes = names_in_order(told_names, getattr(module, "num_classes", None))
    return Model(module, type(module).__name__, preprocess, classes, readers=_readers(module))


def _timm() -> Any:
    return library("timm", "timm", "a model by a timm name")


def _configuration(module: nn.Module) -> dict[str, Any]:
    own: Any = module.pretrained_cfg
    settings: dict[str, Any] = own if isinstance(own, dict) else own.to_dict()
    return settings


def _preset(module: nn.Module) -> Preset:
    """Make timm's own transform for asking a model, with the part of the picture that it keeps."""
    data = library("timm.data", "timm", "preprocessing as timm does it")
    settings = data.resolve_model_data_config(module)
    transform = data.create_transform(**settings, is_training=False)
    return Preset(transform, partial(cut, transform.transforms), settings["mean"], settings["std"])


def _readers(module: nn.Module) -> OutputReaders:
    return OutputReaders(_no_classes) if getattr(module, "num_classes", None) == 0 else OutputReaders()


def _no_classes(output: Any) -> Tensor:
    raise TargetError(
        "this timm model has no class head (num_classes=0), so its output are features, not class scores",
        remedy=Remedy(
            "pass target=a callable from the features to one score per image, or make the model with its classes"
        ),
    )


def _trained(timm: Any, short: str, known: Any) -> nn.Module:
    remedy = (
        f"save that file on this machine and give weights='its path' with timm/{short}, or ask for weights='random'"
    )
    overlay = {}
    if known is None or not known.has_weights:
        raise ModelError(
            f"timm has no trained weights for {short}; ask for weights='random', or give a checkpoint's path"
        )
    if known.hf_hub_id and known.custom_load != "hf":
        names = (known.hf_hub_filename,) if known.hf_hub_filename else _FILES
        overlay = {"file": str(fetched(known.hf_hub_id, names, remedy))}
    try:
        module: nn.Module = timm.create_model(short, pretrained=True, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"the weights of timm/{short} cannot be loaded ({summarise(error)}); {remedy}") from error
    return module


def _imagenet_names(timm: Any, module: nn.Module) -> tuple[str, ...] | None:
    edition = timm.data.infer_imagenet_subset(module)
    return None if edition is None else tuple(timm.data.ImageNetInfo(edition).label_descriptions())


FAMILIES.register("timm", Family("timm", names, build, recognise))
