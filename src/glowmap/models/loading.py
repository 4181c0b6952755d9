"""Load a model by a name, from a file of the user, or as a module."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glowmap.cautions import Caution, caution_kind
from glowmap.errors import InputError, ModelError, Remedy, summarise
from glowmap.models._family import FAMILIES, UNNORMALISED, is_from
from glowmap.models.model import Model
from glowmap.models.preprocessing import ClipTransform, Colours, ResizedAndNormalised, Size, user_transform
from glowmap.models.weights import load_weights
from glowmap.registry import near_names

_UNWRAPPED = caution_kind("wrapper-removed", "info", "Nothing: the weights are the same.")


def load(
    model: str | nn.Module,
    *,
    weights: Any = "default",
    size: Size | None = None,
    mean: Colours | None = None,
    std: Colours | None = None,
    preprocess: Any = None,
    classes: Sequence[str] | Mapping[int, str] | str | Path | None = None,
    processor: Any = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Model:
    """Return a model that takes pictures, from a library's name for it, ``demo``, ``FILE.py:factory`` or a module.

    Names of torchvision need no prefix (``resnet50``). Those of timm are ``timm/convnext_tiny``, of the Hugging Face hub
    ``hf/google/vit-base-patch16-224`` (a folder: ``hf/PATH``), of segmentation_models_pytorch ``smp/Unet-resnet34``, and of
    open_clip, with the tag of the weights, ``open_clip/ViT-B-32:laion2b_s34b_b79k``. ``demo`` is a segmentation model that
    comes with the package, trained on drawn streets; ``demo/honest`` and ``demo/shortcut`` are two classifiers, of which the
    latter relies on a mark in the picture.

    ``weights`` are ``"default"`` (the library's trained weights, downloaded once; a module or factory keeps its own),
    ``"random"`` (drawn from ``seed``), or the path of a checkpoint. ``size`` (rows and columns, or a number for a square),
    ``mean`` and ``std`` (of RGB in [0, 1]) replace those of the model's own preprocessing; where it has none they default to
    the picture's size, 0 and 1. ``preprocess``, a callable from a PIL picture in RGB to a tensor of colour x rows x columns,
    replaces all of these. ``classes`` are the class names in the order of the model's outputs, a dict from index to name, or a
    file with one name a line; a model that compares pictures with texts (CLIP, SigLIP) reads each as "a photo of a ...".
    ``processor`` makes tokens from texts for a module of transformers (its processor or tokenizer) or of open_clip (what
    ``open_clip.get_tokenizer(name)`` returns).

    Raises ModelError for what cannot be found, built or loaded, InputError for preprocessing that makes no sense, and
    MissingExtra for a library that is not installed.
    """
    if not isinstance(weights, str | Path):
        raise ModelError(f"weights are 'default', 'random' or a checkpoint's path, not {weights!r}")
    if preprocess is not None and (size, mean, std) != (None, None, None):
        raise InputError("preprocess replaces size, mean and std", remedy=Remedy("give either preprocess=... or these"))
    loaded = _from_name(model, weights, seed) if isinstance(model, str) else _from_module(model, weights)
    if processor is not None:
        loaded = _with_processor(loaded, processor)
    if preprocess is not None:
        loaded = replace(loaded, preprocess=user_transform(preprocess))
    else:
        loaded = _with_preprocessing(loaded, size, mean, std)
    if classes is not None:
        loaded = replace(loaded, class_names=_class_names(classes))
    return loaded if device is None else _on_device(loaded, device)


def _with_preprocessing(model: Model, size: Size | None, mean: Colours | None, std: Colours | None) -> Model:
    preprocess = model.preprocess or ResizedAndNormalised()
    if model.preprocess is None and mean is None and std is None and not model.normalises_inside:
        caution = UNNORMALISED("no mean and std were given: the model gets RGB in [0, 1] without normalisation")
        model = replace(model, cautions=(*model.cautions, caution))
    if size is not None and isinstance(preprocess, ClipTransform):
        raise InputError(f"the size is for pictures, and {model.name} takes clips; resize the clip, and leave size out")
    if size is not None:
        preprocess = ResizedAndNormalised(size, preprocess.mean, preprocess.std)
    if mean is not None or std is not None:
        preprocess = preprocess.normalised(mean, std)
    return replace(model, preprocess=preprocess)


def as_model(model: Any) -> Model:
    """Return a :class:`Model` unchanged, and any module as a model that takes its own input tensors.

    A module of a known library gets what its family knows: class names, readers of its output, preprocessing. Wrappers
    (torch.compile, DataParallel, ultralytics' YOLO) are removed, with a caution.
    """
    if isinstance(model, Model):
        return model
    module, cautions = _unwrapped(model)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"a model is a torch.nn.Module or what glowmap.load returns, not {type(model).__name__}",
            remedy=Remedy("for a name write glowmap.load(name), for a class or a factory call it first"),
        )
    if isinstance(module, torch.jit.ScriptModule):  # its classes are those of no library
        return Model(module, f"{module.original_name} (TorchScript)", cautions=cautions)
    recognised = _recognised(module)
    return replace(recognised, cautions=(*cautions, *recognised.cautions)) if cautions else recognised


def _recognised(module: nn.Module) -> Model:
    """Ask the families whose libraries define a part of a module for the model that it is."""
    libraries = {
        cls.__module__.partition(".")[0] for kind in {type(part) for part in module.modules()} for cls in kind.__mro__
    }
    for family in FAMILIES.values():
        if family.library in libraries and family.recognise is not None:
            model = family.recognise(module)
            if model is not None:
                return model
    return Model(module, type(module).__name__)


def _unwrapped(model: Any) -> tuple[Any, tuple[Caution, ...]]:
    """Remove wrappers around a module; return it with a caution for each wrapper that changes how it runs."""
    cautions: list[Caution] = []
    while True:
        kind = type(model).__name__
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
            cautions.append(_UNWRAPPED(f"the model inside {kind} is run, on one device"))
        elif kind == "OptimizedModule" and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
            cautions.append(
                _UNWRAPPED(f"the model inside torch.compile's {kind} is run uncompiled, to make its layers visible")
            )
        else:
            unwrapping = (
                family.unwrap
                for family in FAMILIES.values()
                if family.unwrap is not None and is_from(model, family.library)
            )
            inner = next((inner for unwrap in unwrapping if (inner := unwrap(model)) is not None), None)
            if inner is None:
                return model, tuple(cautions)
            model = inner


def _from_name(name: str, weights: str | Path, seed: int) -> Model:
    if ".py:" in name:
        return _from_module(from_file(name), weights, name.rpartition(":")[2])
    if name.endswith(".py"):
        raise ModelError(f"{name} names a file but no factory in it; write {name}:factory")
    prefix, slash, _ = name.partition("/")
    if slash and prefix not in FAMILIES:
        raise ModelError(
            f"no family of models {prefix!r}; the families are {', '.join(FAMILIES)}, "
            f"as in hf/{name} for a folder or a model of the Hugging Face hub"
        )
    plain = next(known for known, family in FAMILIES.items() if family.has_plain_names)
    family = FAMILIES[prefix if prefix in FAMILIES else plain]
    if family.build is None:
        raise ModelError(
            f"no model {name!r} is built by name; write a FILE.py:factory that returns the model of {family.library}"
        )
    return family.build(name, weights, seed)


def _from_module(module: Any, weights: str | Path, name: str = "") -> Model:
    model = as_model(module)
    if str(weights) == "random":
        raise ModelError(f"{name or model.name} has weights already; 'random' is for models by a library's name")
    if str(weights) != "default":
        load_weights(model.module, Path(weights))
    return replace(model, name=name or model.name)


def _with_processor(model: Model, processor: Any) -> Model:
    takers = {
        family.library: family.with_processor for family in FAMILIES.values() if family.with_processor is not None
    }
    for library, with_processor in takers.items():
        if is_from(model.module, library):
            return with_processor(model, processor)
    raise ModelError(
        f"a processor is for models of {' and '.join(sorted(takers, reverse=True))}, and {model.name} is none of them",
        remedy=Remedy("set its preprocessing by size=..., mean=... and std=..."),
    )


def _on_device(model: Model, device: str | torch.device) -> Model:
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("a meta device computes nothing")
        torch.empty(0, device=device)  # a module without parameters can be moved to any device
        model.module.to(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError from a torch that was built without CUDA
        raise ModelError(
            f"{model.name} cannot be moved to the device {str(device)!r} ({summarise(error)}); give cpu, or another device"
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


def from_file(reference: str) -> nn.Module:
    """Build a module from ``FILE.py:factory``, where the factory takes no arguments and returns the module.

    Raises ModelError where the file, the factory or a module is missing, or where the user's code raises.
    """
    path_text, _, factory_name = reference.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise ModelError(f"there is no file {path}; a model of your own is FILE.py:factory")
    namespace = _imported(path)
    factories = [name for name, value in vars(namespace).items() if callable(value) and not name.startswith("_")]
    if not callable(getattr(namespace, factory_name, None)):
        raise ModelError(f"no factory {factory_name!r} in {path}; {near_names(factory_name, factories)}")
    module = _called(getattr(namespace, factory_name), f"the factory {reference}")
    if not isinstance(module, nn.Module):
        raise ModelError(f"the factory {reference} returned {type(module).__name__}; return a torch.nn.Module")
    return module


def _imported(path: Path) -> Any:
    """Import a Python file, with its folder on the path so that it can import its neighbours."""
    spec = importlib.util.spec_from_file_location(f"glowmap_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file; a model of your own is FILE.py:factory")
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = namespace  # dataclasses and pickle look up classes there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        _called(lambda: spec.loader.exec_module(namespace), f"importing {path}")  # type: ignore[union-attr]
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return namespace


def _called(function: Callable[[], Any], what: str) -> Any:
    try:
        return function()
    except Exception as error:
        raise ModelError(f"{what} raised {summarise(error)}; try it in Python first") from error
