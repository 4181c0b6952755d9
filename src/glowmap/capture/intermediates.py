"""Keep what parts of a model put out on the way to its answer, in the graph of the pass, for targets that read it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

# what to keep of a part's run: (arguments, keywords, output) -> anything made of tensors
KeepOutput: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any], Any], Any]


@dataclass
class WithIntermediates:
    """A model's own output, and what was kept inside: by name, a list with an entry for each run of the part."""

    output: Any
    inside: dict[str, Any]


@contextmanager
def opened(model: nn.Module, parts: Mapping[str, tuple[nn.Module, KeepOutput]]) -> Iterator[None]:
    """Let the model answer with an :class:`WithIntermediates`, for as long as the context lasts, in this thread alone."""
    owner = threading.get_ident()
    kept: dict[str, list[Any]] = {}

    def begin(_module: nn.Module, _arguments: Any) -> None:
        if threading.get_ident() == owner:
            kept.clear()
            kept.update({name: [] for name in parts})

    def end(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        if threading.get_ident() != owner:
            return None
        inside = output.inside if isinstance(output, WithIntermediates) else {}
        return WithIntermediates(output.output if isinstance(output, WithIntermediates) else output, {**inside, **kept})

    def keeping(name: str, keep: KeepOutput) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if threading.get_ident() == owner and name in kept:
                kept[name].append(keep(arguments, keywords, output))

        return hook

    with ExitStack() as hooked:
        hooked.callback(model.register_forward_pre_hook(begin).remove)
        for name, (part, keep) in parts.items():
            hooked.callback(part.register_forward_hook(keeping(name, keep), with_kwargs=True).remove)
        hooked.callback(model.register_forward_hook(end).remove)
        yield
