"""Tensors in any structure: tuples, lists, mappings and dataclasses, however nested."""

import builtins
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def leaves(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield output
        return
    parts = output if type(output) in (list, tuple, dict) else _parts(output)
    for part in parts.values() if isinstance(parts, dict) else parts:
        yield from leaves(part)


def full_precision(values: Tensor) -> Tensor:
    """Cast to float32, except float64. Sums over channels and pixels overflow and cancel in half precision."""
    return values if values.dtype == torch.float64 else values.float()


def random_signs(values: Tensor) -> Tensor:
    """Return a tensor like ``values`` of 1 and -1 at random, the same on every call: a sum with these signs cancels nothing."""
    signs = torch.randint(0, 2, values.shape, generator=torch.Generator().manual_seed(0))
    return signs.to(values) * 2 - 1


def replace(output: Any, old: Tensor, new: Tensor) -> Any:
    """Copy a structure with one tensor replaced, wherever it occurs."""
    return map(output, lambda tensor: new if tensor is old else tensor)


def replace_each(output: Any, old: Sequence[Tensor], new: Sequence[Tensor]) -> Any:
    """Copy a structure with several tensors replaced, wherever they occur."""
    replacements = {id(before): after for before, after in zip(old, new, strict=True)}
    return map(output, lambda tensor: replacements.get(id(tensor), tensor))


def map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:  # noqa: A001 (it is read as tree.map)
    """Copy a structure with a function applied to each tensor. Other values stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)([map(part, function) for part in value])
    if type(value) is dict:
        return {key: map(part, function) for key, part in value.items()}
    parts = {key: map(part, function) for key, part in _parts(value).items()}
    # an empty list or dict is copied too, as the model may fill it
    return _with_parts(value, parts) if parts or isinstance(value, list | dict) else value


def concatenate(outputs: Sequence[Any], rows: int, count: int) -> Any:
    """Concatenate outputs of the same structure along the batch axis and keep the first ``count`` rows.

    Tensors that do not have ``rows`` rows have no batch axis; they are those of the first output.
    """
    joined: dict[int, Tensor] = {}
    for first, *others in zip(*builtins.map(leaves, outputs), strict=True):
        has_rows = first.ndim > 0 and len(first) == rows
        joined[id(first)] = torch.cat([first, *others])[:count] if has_rows else first
    return map(outputs[0], lambda tensor: joined[id(tensor)])


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):  # before dataclasses: transformers' ModelOutput is both, and its keys count
        return dict(value.items())
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
    return {}


def _with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return type(value)(*parts.values())
    if isinstance(value, list | tuple):
        return type(value)(list(parts.values()))
    if isinstance(value, Mapping) and not hasattr(value, "__setitem__"):
        return parts  # a read-only mapping
    copied = copy.copy(value)
    for key, part in parts.items():
        if isinstance(value, Mapping):
            copied[key] = part
        else:
            object.__setattr__(copied, key, part)  # works for frozen dataclasses too
    return copied
