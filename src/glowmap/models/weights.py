"""Weights: checkpoint files, read without running code, and files of the Hugging Face hub, from the cache or the network."""

import importlib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from glowmap.errors import ModelError, Remedy, summarise

PATIENCE = 2.5  # seconds that the hub has to answer; its own clients try for most of a minute


def cached(repository: str, names: Sequence[str], revision: str | None = None) -> Path | None:
    """Return the path of the first of these files that is in the cache; None where none is."""
    for name in names:
        path = _hub().try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path)
    return None


def fetched(repository: str, names: Sequence[str], remedy: Remedy | str, revision: str | None = None) -> Path:
    """Return the path of the first of these files in the cache, else download the first that the hub has.

    Raises ModelError, with the ``remedy``, where the hub cannot be reached or has none of them.
    """
    path = cached(repository, names, revision)
    if path is not None:
        return path
    reach(repository, names[0], remedy)
    for name in names:
        try:
            return Path(_hub().hf_hub_download(repository, name, revision=revision))
        except _hub().errors.EntryNotFoundError:
            continue
        except Exception as error:  # of the network, the disk or the hub
            raise ModelError(
                f"{name} of {repository} cannot be downloaded ({summarise(error)})", remedy=remedy
            ) from error
    raise ModelError(f"the hub's {repository} has no {' nor '.join(names)}", remedy=remedy)


def reach(repository: str, name: str, remedy: Remedy | str) -> None:
    """Ask the hub once for a repository. Raises ModelError, with the ``remedy``, where it has none or does not answer."""
    hub = _hub()
    try:
        hub.HfApi().model_info(repository, timeout=PATIENCE)
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise ModelError(
            f"there is no {repository!r} on the Hugging Face hub, or not for you; check the name"
        ) from error
    except Exception as error:
        raise ModelError(
            f"{name} of {repository} is not in {hub.constants.HF_HUB_CACHE}, and the Hugging Face hub cannot be reached "
            f"({summarise(error)})",
            remedy=remedy,
        ) from error


@contextmanager
def offline() -> Iterator[None]:
    """Let libraries use the cache without asking the hub for newer files."""
    constants = _hub().constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub() -> Any:
    return importlib.import_module("huggingface_hub")  # a dependency of all libraries that get here


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint (safetensors, or a PyTorch file of tensors alone) into a module, strictly.

    Raises ModelError for a missing or damaged file, for one that would run code, and for keys that do not fit.
    """
    state = _without_prefix(read_weights(path), set(module.state_dict()))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        expected = set(module.state_dict())
        missing, unexpected = sorted(expected - set(state)), sorted(set(state) - expected)
        if missing or unexpected:
            fact = f"{len(missing)} tensors are missing ({_first(missing)}), {len(unexpected)} are unknown ({_first(unexpected)})"
        else:
            fact = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"the weights in {path} do not fit this {type(module).__name__}: {fact}; give a checkpoint of this model"
        ) from error


def _without_prefix(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Remove the prefix that a wrapper (DataParallel, a training loop's class) gave to every key, where the keys then fit."""
    for prefix in ("module.", "model.", "_orig_mod."):
        if {prefix + name for name in expected} == set(state):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint without running code in it."""
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}; give default, random or a checkpoint's path")
    is_checkpoint = path.suffix == ".safetensors" or zipfile.is_zipfile(path) or path.read_bytes()[:1] == b"\x80"
    if not is_checkpoint:
        raise ModelError(f"{path} is not a checkpoint; give a file that torch.save or safetensors wrote")
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
        raise ModelError(f"the weights file {path} is not a state dict of tensors; save module.state_dict()")
    return state


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + ", ..." * (len(names) > 2) if names else "none"
