"""Families of models, and :func:`load`: from a name, a file or a module to a model that takes pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glowmap.errors import InputError, ModelError, told
from glowmap.models import demo as demo
from glowmap.models import torchvision as torchvision
from glowmap.models._family import FAMILIES as FAMILIES
from glowmap.models._family import Colours as Colours
from glowmap.models._family import Model as Model
from glowmap.models.plain import ResizedAndNormalised, from_file, load_weights
from glowmap.models.plain import Size as Size
from glowmap.models.plain import read_logits as read_logits


def load(
    model: str | nn.Module,
    *,
    weights: Any = "default",
    size: Size | None = None,
    mean: Colours | None = None,
    std: Colours | None = None,
    classes: Sequence[str] | Mapping[int, str] | str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Model:
    """Make a model that takes pictures, from a torchvision name, ``demo``, ``FILE.py:factory`` or a module of your own.

    ``demo`` comes with the package: a segmentation model trained on drawn streets. So do ``demo/honest`` and
    ``demo/shortcut``, two classifiers that differ in what they lean on.

    ``weights`` are ``"default"`` (the library's trained ones, downloaded once; a module's or factory's as they are),
    ``"random"`` (drawn from ``seed``), or a checkpoint's path. ``size`` (rows and columns, or a number for a square),
    ``mean`` and ``std`` (of RGB in [0, 1]) replace those of the model's own preprocessing; where it has none they default to
    the picture's size, 0 and 1. ``classes`` are the class names in the model's order, a dict from index to name, or a file
    with one a line.

    Raises ModelError for what cannot be found, built or loaded, MissingExtra for a library that is not installed.
    """
    if not isinstance(weights, str | Path):
        raise ModelError(f"weights are 'default', 'random' or a checkpoint's path, not {weights!r}")
    built = _from_name(model, weights, seed) if isinstance(model, str) else _from_module(model, weights)
    own = built.preprocess or ResizedAndNormalised()
    if built.preprocess is None and mean is None and std is None:
        built = built.changed(notes=(*built.notes, "no mean and std were given: the model gets RGB in [0, 1] as it is"))
    if size is not None:
        own = ResizedAndNormalised(size, own.mean, own.std)
    if mean is not None or std is not None:
        own = own.normalised(mean, std)
    built = built.changed(preprocess=own)
    if classes is not None:
        built = built.changed(class_names=_class_names(classes))
    return built if device is None else _on_device(built, device)


def as_model(model: Any) -> Model:
    """Take what :func:`load` returned, or any module, which then takes its own input tensors."""
    if isinstance(model, Model):
        return model
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a model is a torch.nn.Module or what glowmap.load(...) returns, not {type(model).__name__}; "
            "for a name write glowmap.load(name), for a class or a factory call it first"
        )
    return Model(model, type(model).__name__, notes=torchvision.cautions(model))


def _from_name(name: str, weights: str | Path, seed: int) -> Model:
    if ".py:" in name:
        return _from_module(from_file(name), weights, name.rpartition(":")[2])
    if name.endswith(".py"):
        raise ModelError(f"{name} names a file but no factory in it; write {name}:factory")
    family = name.partition("/")[0]
    return FAMILIES[family if family in FAMILIES else "torchvision"].build(name, weights, seed)


def _from_module(module: Any, weights: str | Path, name: str = "") -> Model:
    model = as_model(module)
    if str(weights) == "random":
        raise ModelError(f"{name or model.name} decides its own weights; 'random' is for models by a library's name")
    if str(weights) != "default":
        load_weights(model.module, Path(weights))
    return model.changed(name=name or model.name)


def _on_device(model: Model, device: str | torch.device) -> Model:
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("a meta device computes nothing")
        torch.empty(0, device=device)  # a module without parameters would go anywhere
        model.module.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"{model.name} cannot be moved to the device {str(device)!r} ({told(error)}); give cpu, or one that is here"
        ) from error
    return model


def _class_names(classes: Any) -> tuple[str, ...]:
    if isinstance(classes, Mapping) and sorted(classes) == list(range(len(classes))):
        classes = [classes[index] for index in range(len(classes))]
    if isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    if not isinstance(classes, str | Path):
        raise InputError(
            f"class names are a list of str, a dict from 0, 1, ... to str, or a file, not {type(classes).__name__}"
        )
    try:
        lines = Path(classes).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"the class names in {classes} cannot be read ({error}); give a text file with one name a line"
        ) from None
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)
