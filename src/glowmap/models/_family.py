"""What a family is, and what comes of it: a model that can be asked about pictures."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glowmap.errors import MissingExtra, ModelError
from glowmap.models.model import Model, TextInterface, TextPass
from glowmap.models.preprocessing import Colours
from glowmap.registry import Registry

RANDOM = "the weights are random: the map shows how the network is wired, not anything it has learned"


@dataclass(frozen=True)
class Family:
    """A library's models: the names it can build, how a name becomes a :class:`Model`, and how a module is known as its own.

    ``build`` takes (name, weights, seed). ``recognise`` gives None for a module that is none of the library's, and never
    imports the library for it: whoever holds such a module has done so.
    """

    library: str
    names: Callable[[], Sequence[str]]
    build: Callable[[str, str | Path, int], Model]
    recognise: Callable[[nn.Module], Model | None]


FAMILIES: Registry[Family] = Registry("model family", ModelError)


def library(name: str, extra: str, purpose: str) -> Any:
    """Import a family's library; MissingExtra where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtra(name, extra, purpose) from None


def is_of(module: object, package: str) -> bool:
    """Tell whether a class of this package is among those that an object is made of."""
    return any(cls.__module__.partition(".")[0] == package for cls in type(module).__mro__)


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Draw random weights from a seed, and leave the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def names_in_order(names: Any, count: int | None = None) -> tuple[str, ...] | None:
    """Put class names (a list, or a dict by index) in order; None where they are no names, or not ``count`` of them."""
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


__all__ = [
    "FAMILIES",
    "RANDOM",
    "Colours",
    "Family",
    "Model",
    "TextInterface",
    "TextPass",
    "drawn_from",
    "is_of",
    "library",
    "names_in_order",
]
