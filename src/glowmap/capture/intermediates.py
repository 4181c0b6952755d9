"""Keep outputs of a model's parts, in the graph of the forward pass, for targets that read them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from glowmap.capture.hooks import hooked

# what to keep of a run of a part: (arguments, keywords, output) -> anything made of tensors
KeepOutput: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]


@dataclass
class WithIntermediates:
    """A model's own output, and what was kept of its parts: by name, a list with an entry for each run of the part."""

    output: Any
    inside: dict[str, Any]


@contextmanager
def keep_intermediates(model: nn.Module, parts: Mapping[str, tuple[nn.Module, KeepOutput]]) -> Iterator[None]:
    """Let the model return a :class:`WithIntermediates` in this thread, until the context ends."""
    by_name: dict[str, list[Any]] = {}
    names: dict[nn.Module, list[str]] = {}
    for name, (part, _) in parts.items():
        names.setdefault(part, []).append(name)

    def begin(_model: nn.Module, _arguments: Any, _keywords: Any) -> None:
        by_name.clear()
        by_name.update({name: [] for name in parts})

    def keep(part: nn.Module, arguments: Any, keywords: dict[str, Any], output: Any) -> None:
        for name in names[part]:
            if name in by_name:  # the part may also run outside of the model
                by_name[name].append(parts[name][1](arguments, keywords, output))

    def end(_model: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> WithIntermediates:
        if isinstance(output, WithIntermediates):
            return WithIntermediates(output.output, {**output.inside, **by_name})
        return WithIntermediates(output, dict(by_name))

    with hooked([model], before=begin), hooked(names, after=keep), hooked([model], after=end):
        yield
