"""Any module: the answers when no family knows better, and models from a file of the user's own."""

import importlib.util
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from glowmap.errors import InputError, ModelError, TargetError, told
from glowmap.images import Picture, refuse_gigantic, whole
from glowmap.models._preset import Colours
from glowmap.shelf import near_names

Size = int | tuple[int, int]


def read_logits(output: Any) -> Tensor:
    """Find the class scores in a raw output: a tensor, ``.logits``, the keys "logits" or "out", or a tuple's first tensor."""
    if isinstance(output, Mapping):
        candidates = [output[key] for key in ("logits", "out") if key in output]
    elif isinstance(getattr(output, "logits", None), Tensor):
        candidates = [output.logits]
    else:
        candidates = [output[0]] if isinstance(output, tuple | list) and output else [output]
    if not candidates or not isinstance(candidates[0], Tensor):
        if candidates and isinstance(candidates[0], Mapping) and "boxes" in candidates[0]:
            raise TargetError(
                "the model answers with detections, not with class scores; ask about one of them with "
                "target=glowmap.targets.Detection(category, box), or give a callable from the output to one score per image"
            )
        keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise TargetError(
            f"no class scores are found in the model's output, a {type(output).__name__}{keys}; "
            "pass target=a callable from this output to one score per image"
        )
    return candidates[0]


@dataclass(frozen=True)
class ResizedAndNormalised:
    """Resize to rows x columns (a number is a square, None leaves the size), scale to [0, 1], subtract mean, divide by std.

    Where the size is left, rows and columns grow to the next ``multiple``, for networks that take no other.
    """

    size: Size | None = None
    mean: Colours = 0.0
    std: Colours = 1.0
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.size is not None:
            rows, columns = self._rows_columns()
            if min(rows, columns) < 1:
                raise InputError(f"a size of {self.size} has no pixels; give rows and columns of at least 1")
            refuse_gigantic((columns, rows), f"the size {self.size}")
        if (_colours(self.mean, "mean").abs() > 1).any():
            raise InputError(f"mean={self.mean} is not of colours in [0, 1]; divide it by 255, and std too")
        if (_colours(self.std, "std") == 0).any():
            raise InputError(f"std={self.std} divides by zero; give the standard deviation of the training pictures")

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Picture]:
        resized = picture
        if self.size is not None:
            resized = picture.resize(self._rows_columns()[::-1], Image.Resampling.BILINEAR)
        elif any(side % self.multiple for side in picture.size):
            width, height = (-(-side // self.multiple) * self.multiple for side in picture.size)
            resized = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        return (pixels - _colours(self.mean, "mean")) / _colours(self.std, "std"), whole(picture)

    def normalised(self, mean: Colours | None, std: Colours | None) -> "ResizedAndNormalised":
        """Copy with another mean or standard deviation; None keeps the own one."""
        return replace(self, mean=self.mean if mean is None else mean, std=self.std if std is None else std)

    def _rows_columns(self) -> tuple[int, int]:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if not isinstance(size, tuple | list) or [type(side) for side in size] != [int, int]:
            raise InputError(f"a size of {self.size!r} is not understood; give a number, or (rows, columns)")
        return size[0], size[1]


def _colours(values: Colours, what: str) -> Tensor:
    try:
        colours = torch.as_tensor(values, dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        colours = torch.empty(0)
    if len(colours) not in (1, 3) or not colours.isfinite().all():
        raise InputError(
            f"{what}={values} is not one number or three; give one for all colours, or one each for R, G and B"
        )
    return colours[:, None, None]


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
        raise ModelError(f"{what} raised {told(error)}; try it in Python by itself") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint (safetensors, or a PyTorch file of tensors alone) into a module, strictly.

    Raises ModelError for a missing or damaged file, for one that would run code, and for keys that do not fit.
    """
    state = _without_prefix(read_weights(path), set(module.state_dict()))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        own = set(module.state_dict())
        missing, surplus = sorted(own - set(state)), sorted(set(state) - own)
        if missing or surplus:
            fact = f"{len(missing)} tensors are missing ({_some(missing)}), {len(surplus)} are not its own ({_some(surplus)})"
        else:
            fact = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"the weights in {path} do not fit this {type(module).__name__}: {fact}; give its own"
        ) from error


def _without_prefix(state: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """Take off the prefix that a wrapper (DataParallel, a training loop's class) gave to every key, where that fits."""
    for prefix in ("module.", "model.", "_orig_mod."):
        if {prefix + name for name in own} == set(state):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint without running anything that is in it."""
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}; give default, random or a checkpoint's path")
    if path.suffix != ".safetensors" and not zipfile.is_zipfile(path) and path.read_bytes()[:1] != b"\x80":  # a pickle
        raise ModelError(f"{path} is no checkpoint; give what torch.save or safetensors wrote")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"the weights file {path} is damaged or of another kind ({type(error).__name__}); save it again"
        ) from error
    except Exception as error:  # pickle.UnpicklingError: the file wants to run code
        raise ModelError(
            f"the weights file {path} holds more than tensors, which could run a stranger's code and is not loaded; "
            "save module.state_dict() with torch.save or safetensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"the weights file {path} is no state dict of tensors; save module.state_dict()")
    return state


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + ", ..." * (len(names) > 2) if names else "none"
