"""Files of the Hugging Face hub: from this machine's cache, else from the network, else an early and clear error."""

import importlib
import importlib.util
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

PATIENCE = 2.5  # seconds that the hub has to answer one question; its own clients would try for most of a minute


def cached(repository: str, names: Sequence[str], revision: str | None = None) -> Path | None:
    """Find the first of these files that is in the cache."""
    for name in names:
        found = _hub().try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def fetched(repository: str, names: Sequence[str], remedy: Remedy | str, revision: str | None = None) -> Path:
    """Take the first of these files that there is, from the cache or else from the hub.

    Raises ModelError, with the ``remedy``, where the hub cannot be reached or has none of them.
    """
    found = cached(repository, names, revision)
    if found is not None:
        return found
    reach(repository, names[0], remedy)
    for name in names:
        try:
            return Path(_hub().hf_hub_download(repository, name, revision=revision))
        except _hub().errors.EntryNotFoundError:
            continue
        except Exception as error:  # the network's, the disk's and the hub's own
            raise ModelError(
                f"{name} of {repository} cannot be downloaded ({summarise(error)})", remedy=remedy
            ) from error
    raise ModelError(f"the hub's {repository} has no {' nor '.join(names)}", remedy=remedy)


def reach(repository: str, name: str, remedy: Remedy | str) -> None:
    """Ask the hub once whether it has a repository; ModelError, with the ``remedy``, where it has not or does not answer."""
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
    """Let libraries find what the cache holds without asking the hub whether there is something newer."""
    constants = _hub().constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub() -> Any:
    return importlib.import_module("huggingface_hub")  # comes with every library that asks here


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
