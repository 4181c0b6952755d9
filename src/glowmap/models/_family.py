"""Families: what Glowmap knows of one library's models, and the registry of them."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glowmap.cautions import caution_kind
from glowmap.errors import MissingExtra, ModelError
from glowmap.models.model import Model
from glowmap.registry import Registry

_RANDOM_WEIGHTS = caution_kind("random-weights", "caution", "Load trained weights.")
RANDOM = _RANDOM_WEIGHTS("the weights are random: the map shows how the network is wired, not what it has learned")
PARTLY_RANDOM = caution_kind(
    "partly-random-weights", "caution", "Give a checkpoint that holds all weights of the model."
)
UNNORMALISED = caution_kind(
    "not-normalised", "caution", "Give mean=... and std=... as the model was trained with, or preprocess=..."
)


@dataclass(frozen=True)
class Family:
    """One library's models. A function that a library does not need is None.

    ``recognise`` turns a module into a :class:`Model`; None for a module of another library. It never imports the library,
    because whoever has such a module has done so. ``build`` makes a model from (name, weights, seed), and ``names`` lists the
    names that it takes; these begin with the family's name and a slash, unless ``has_plain_names``.

    ``unwrap`` takes the network out of an object of the library that contains it; None for any other object.
    ``with_processor`` adds a processor or tokenizer to a model, which makes inputs from texts.
    """

    library: str
    recognise: Callable[[nn.Module], Model | None] | None = None
    build: Callable[[str, str | Path, int], Model] | None = None
    names: Callable[[], Sequence[str]] | None = None
    has_plain_names: bool = False
    unwrap: Callable[[Any], nn.Module | None] | None = None
    with_processor: Callable[[Model, Any], Model] | None = None


FAMILIES: Registry[Family] = Registry("model family", ModelError)


def import_library(name: str, extra: str, purpose: str) -> Any:
    """Import a family's library. Raises MissingExtra where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtra(name, extra, purpose) from None


def is_from(instance: object, package: str) -> bool:
    """Return whether an object's class, or one of its base classes, is defined in this package."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(instance).__mro__)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random weights from a seed; the global generator is unchanged afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def ordered_names(names: Any, count: int | None = None) -> tuple[str, ...] | None:
    """Order class names given as a list, or as a dict by index.

    None for anything else, for a number other than ``count``, and for placeholders such as "LABEL_0".
    """
    if isinstance(names, Mapping):
        if sorted(names) != list(range(len(names))):
            return None
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list | tuple) or not names or (count is not None and len(names) != count):
        return None
    placeholders = ({str(index), f"LABEL_{index}", f"class{index}"} for index in range(len(names)))
    if all(str(name) in dummies for name, dummies in zip(names, placeholders, strict=True)):
        return None
    return tuple(map(str, names))
