"""Files of the Hugging Face hub: from this machine's cache, else from the network, else an early and clear error."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glowmap.errors import ModelError, told

PATIENCE = 2.5  # seconds that the hub has to answer one question; its own clients would try for most of a minute


def cached(repository: str, names: Sequence[str], revision: str | None = None) -> Path | None:
    """Find the first of these files that is in the cache."""
    for name in names:
        found = _hub().try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def fetched(repository: str, names: Sequence[str], remedy: str, revision: str | None = None) -> Path:
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
            raise ModelError(f"{name} of {repository} cannot be downloaded ({told(error)}); {remedy}") from error
    raise ModelError(f"the hub's {repository} has no {' nor '.join(names)}; {remedy}")


def reach(repository: str, name: str, remedy: str) -> None:
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
            f"({told(error)}); {remedy}"
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
