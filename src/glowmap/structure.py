"""Tensors in any structure: tuples, lists and mappings, however nested."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Walk through tensors in tuples, lists and mappings, however nested."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_in(value)


def replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """Copy an output with one tensor exchanged."""
    return mapped(output, lambda tensor: new if tensor is old else tensor)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in tuples, lists and mappings, however nested; anything else stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        copied: Any = copy.copy(value)
        for key, part in value.items():
            copied[key] = mapped(part, function)
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple takes its fields one by one
        return type(value)(*(mapped(part, function) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(part, function) for part in value)
    return value
