"""Load a model by a name, from a file of the user, or as a module."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glowmap.errors import InputError, ModelError, Remedy, summarise
from glowmap.models import open_clip as open_clip
from glowmap.models import ultralytics as ultralytics
from glowmap.models._family import FAMILIES as FAMILIES
from glowmap.models._family import is_of
from glowmap.models.model import Model as Model
from glowmap.models.preprocessing import Clips, Colours, ResizedAndNormalised, Size
from glowmap.models.torchvision import family as torchvision
from glowmap.models.transformers import family as transformers
from glowmap.models.weights import load_weights
from glowmap.registry import near_names


def load(
    model: str | nn.Module,
    *,
    weights: Any = "default",
    size: Size | None = None,
    mean: Colours | None = None,
    std: Colours | None = None,
    classes: Sequence[str] | Mapping[int, str] | str | Path | None = None,
    processor: Any = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Model:
    """Make a model that takes pictures, from a library's name for it, ``demo``, ``FILE.py:factory`` or a module of your own.

    Names are torchvision's as they are (``resnet50``), timm's as ``timm/convnext_tiny``, those of the Hugging Face hub as
    ``hf/google/vit-base-patch16-224`` or a folder as ``hf/PATH``, segmentation_models_pytorch's as ``smp/Unet-resnet34``, and
    open_clip's with the weights' tag as ``open_clip/ViT-B-32:laion2b_s34b_b79k``. ``demo`` comes with the package: a
    segmentation model trained on drawn streets. So do ``demo/honest`` and ``demo/shortcut``, two classifiers that differ in
    what they lean on.

    ``weights`` are ``"default"`` (the library's trained ones, downloaded once; a module's or factory's as they are),
    ``"random"`` (drawn from ``seed``), or a checkpoint's path. ``size`` (rows and columns, or a number for a square),
    ``mean`` and ``std`` (of RGB in [0, 1]) replace those of the model's own preprocessing; where it has none they default to
    the picture's size, 0 and 1. ``classes`` are the class names in the model's order, a dict from index to name, or a file
    with one a line; a model that compares pictures with texts (CLIP, SigLIP) reads each as "a photo of a ...". ``processor`` is
    for such modules of your own: what makes tokens of the texts that they are asked about, a processor or tokenizer of
    transformers, or for open_clip's models what ``open_clip.get_tokenizer(name)`` returns.

    Raises ModelError for what cannot be found, built or loaded, MissingExtra for a library that is not installed.
    """
    if not isinstance(weights, str | Path):
        raise ModelError(f"weights are 'default', 'random' or a checkpoint's path, not {weights!r}")
    built = _from_name(model, weights, seed) if isinstance(model, str) else _from_module(model, weights)
    if processor is not None:
        built = _hearing(built, processor)
    own = built.preprocess or ResizedAndNormalised()
    if built.preprocess is None and mean is None and std is None and not torchvision.lays_out_anew(built.module):
        # (torchvision's detectors normalise inside)
        built = replace(
            built, cautions=(*built.cautions, "no mean and std were given: the model gets RGB in [0, 1] as it is")
        )
    if size is not None and isinstance(own, Clips):
        raise InputError(f"a size is of pictures, and {built.name} takes clips; resize the clip, or leave the size out")
    if size is not None:
        own = ResizedAndNormalised(size, own.mean, own.std)
    if mean is not None or std is not None:
        own = own.normalised(mean, std)
    built = replace(built, preprocess=own)
    if classes is not None:
        built = replace(built, class_names=_class_names(classes))
    return built if device is None else _on_device(built, device)


def as_model(model: Any) -> Model:
    """Take what :func:`load` returned, or any module, which then takes its own input tensors.

    A module of a known library comes with what is known of it: its class names, how its scores are read, its preprocessing.
    Wrappers (torch.compile's, DataParallel's, ultralytics' YOLO) are taken off, which is noted.
    """
    if isinstance(model, Model):
        return model
    module, cautions = _unwrapped(model)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"a model is a torch.nn.Module or what glowmap.load returns, not {type(model).__name__}",
            remedy=Remedy("for a name write glowmap.load(name), for a class or a factory call it first"),
        )
    if isinstance(module, torch.jit.ScriptModule):  # whose classes are not those of any library
        return Model(module, f"{module.original_name} (TorchScript)", cautions=cautions)
    families = (family for _, family in FAMILIES.items())
    found = next((known for family in families if (known := family.recognise(module))), None)
    plain = found or Model(module, type(module).__name__)
    return replace(plain, cautions=(*cautions, *plain.cautions))


def _unwrapped(model: Any) -> tuple[Any, tuple[str, ...]]:
    """Take off what stands around a module, and note it."""
    cautions: list[str] = []
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner, caution = model.module, "the model inside {} is run, on one device"
        elif type(model).__name__ == "OptimizedModule" and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            inner, caution = (
                model._orig_mod,
                "the model inside torch.compile's {} is run, uncompiled, as only then its layers can be seen",
            )
        else:
            return ultralytics.unwrapped(model), tuple(cautions)
        cautions.append(caution.format(type(model).__name__))
        model = inner


def _from_name(name: str, weights: str | Path, seed: int) -> Model:
    if ".py:" in name:
        return _from_module(from_file(name), weights, name.rpartition(":")[2])
    if name.endswith(".py"):
        raise ModelError(f"{name} names a file but no factory in it; write {name}:factory")
    family, slash, _ = name.partition("/")
    if slash and family not in FAMILIES:
        raise ModelError(
            f"no family of models {family!r}; before a slash stand {', '.join(known for known in FAMILIES)}, "
            f"as in hf/{name} for a folder or a model of the Hugging Face hub"
        )
    return FAMILIES[family if family in FAMILIES else "torchvision"].build(name, weights, seed)


def _from_module(module: Any, weights: str | Path, name: str = "") -> Model:
    model = as_model(module)
    if str(weights) == "random":
        raise ModelError(f"{name or model.name} decides its own weights; 'random' is for models by a library's name")
    if str(weights) != "default":
        load_weights(model.module, Path(weights))
    return replace(model, name=name or model.name)


def _hearing(model: Model, processor: Any) -> Model:
    if is_of(model.module, "open_clip"):
        return open_clip.with_processor(model, processor)
    if is_of(model.module, "transformers"):
        return transformers.with_processor(model, processor)
    raise ModelError(
        f"a processor is for models of transformers and open_clip, and {model.name} is none of them",
        remedy=Remedy("say how pictures become its input by size=..., mean=... and std=..."),
    )


def _on_device(model: Model, device: str | torch.device) -> Model:
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("a meta device computes nothing")
        torch.empty(0, device=device)  # a module without parameters would go anywhere
        model.module.to(device)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch that was built without CUDA
        raise ModelError(
            f"{model.name} cannot be moved to the device {str(device)!r} ({summarise(error)}); give cpu, or one that is here"
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
    """Build a model of the user's own: ``FILE.py:factory``, where the factory takes nothing and returns a module.

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
    """Import a file under its own name, with its folder on the path so that it can import its neighbours."""
    spec = importlib.util.spec_from_file_location(f"glowmap_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is no Python file; a model of your own is FILE.py:factory")
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = namespace  # where dataclasses and pickle look for the classes in it
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
        raise ModelError(f"{what} raised {summarise(error)}; try it in Python by itself") from error
