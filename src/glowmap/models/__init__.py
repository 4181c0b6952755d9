"""Families of models, and :func:`load`: from a name, a file or a module to a model that takes pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glowmap.errors import InputError, ModelError
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
    weights: str | Path = "default",
    size: Size | None = None,
    mean: Colours | None = None,
    std: Colours | None = None,
    classes: Sequence[str] | str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Model:
    """Make a model that takes pictures, from a torchvision name, ``FILE.py:factory`` or a module of your own.

    ``weights`` are ``"default"`` (the library's trained ones, downloaded once; a module's or factory's as they are),
    ``"random"`` (drawn from ``seed``), or a checkpoint's path. ``size`` (rows and columns, or a number for a square),
    ``mean`` and ``std`` (of RGB in [0, 1]) replace the model's own preprocessing; where it has none they default to
    the picture's size, 0 and 1. ``classes`` are the class names in the model's order, or a file with one a line.

    Raises ModelError for what cannot be found, built or loaded, MissingExtra for a library that is not installed.
    """
    built = _from_name(model, weights, seed) if isinstance(model, str) else _from_module(model, weights)
    if size is not None or mean is not None or std is not None or built.preprocess is None:
        own = built.preprocess or ResizedAndNormalised()
        built = built.changed(
            preprocess=ResizedAndNormalised(size, own.mean if mean is None else mean, own.std if std is None else std)
        )
    if classes is not None:
        built = built.changed(class_names=_class_names(classes))
    if device is not None:
        built.module.to(device)
    return built


def as_model(model: Any) -> Model:
    """Take what :func:`load` returned, or any module, which then takes its own input tensors."""
    if isinstance(model, Model):
        return model
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a model is a torch.nn.Module or what glowmap.load(...) returns, not {type(model).__name__}; "
            "for a name write glowmap.load(name)"
        )
    return Model(model, type(model).__name__)


def _from_name(name: str, weights: str | Path, seed: int) -> Model:
    if ".py:" in name:
        return _from_module(from_file(name), weights, name.rpartition(":")[2])
    if name.endswith(".py"):
        raise ModelError(f"{name} names a file but no factory in it; write {name}:factory")
    return FAMILIES["torchvision"].build(name, weights, seed)


def _from_module(module: nn.Module, weights: str | Path, name: str = "") -> Model:
    model = as_model(module)
    if str(weights) == "random":
        raise ModelError(f"{name or model.name} decides its own weights; 'random' is for models by a library's name")
    if str(weights) != "default":
        load_weights(module, Path(weights))
    return model.changed(name=name or model.name)


def _class_names(classes: Sequence[str] | str | Path) -> tuple[str, ...]:
    if not isinstance(classes, str | Path):
        return tuple(classes)
    try:
        lines = Path(classes).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the class names in {classes} cannot be read ({error}); give a text file with one name a line"
        ) from None
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)
