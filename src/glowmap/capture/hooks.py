"""Hooks and patched methods that act in the thread that set them, and last as long as a context."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from glowmap import tree


def hookable(model: nn.Module) -> dict[str, nn.Module]:
    """List the modules inside a model that take hooks, each once, by name: all but scripted ones."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and module is not model and not isinstance(module, torch.jit.ScriptModule)
    }


@contextmanager
def hooked(
    modules: Iterable[nn.Module],
    *,
    before: Callable[[nn.Module, Any, dict[str, Any]], Any] | None = None,
    after: Callable[[nn.Module, Any, dict[str, Any], Any], Any] | None = None,
    prepend: bool = False,
) -> Iterator[None]:
    """Call functions before and after modules run in this thread, until the context ends.

    ``before(module, arguments, keywords)`` may return other ``(arguments, keywords)``; ``after(module, arguments, keywords,
    output)`` another output; None leaves them unchanged. With ``prepend``, ``after`` is called before the module's other hooks.
    """
    thread = threading.get_ident()
    handles = []
    try:
        for module in modules:
            if before is not None:
                hook = lambda *call: before(*call) if threading.get_ident() == thread else None  # noqa: E731
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if after is not None:
                hook = lambda *call: after(*call) if threading.get_ident() == thread else None  # noqa: E731
                handles.append(module.register_forward_hook(hook, with_kwargs=True, prepend=prepend))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def output_changed(
    module: nn.Module, change: Callable[[Any], Any], forget: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Change a module's output in this thread, before its other hooks see it: they may keep it for the model to read later.

    Where another hook replaces the changed output, ``forget()`` is called and that hook's output is changed instead.
    """
    changed: list[Any] = []

    def first(_module: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> Any:
        changed[:] = [change(output)]
        return changed[0]

    def last(_module: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> Any:
        if not changed:
            return None
        before, now = list(tree.leaves(changed.pop())), list(tree.leaves(output))
        if len(before) == len(now) and all(old is new for old, new in zip(before, now, strict=True)):
            return None
        forget()
        return change(output)

    with hooked([module], after=first, prepend=True), hooked([module], after=last):
        yield


@contextmanager
def method_patched(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of an object in this thread; ``function`` gets the original method, then the call's arguments.

    A module whose ``forward`` is replaced still runs its hooks.
    """
    original, patched_before, thread = getattr(owner, name), vars(owner).get(name), threading.get_ident()

    def method(*arguments: Any, **keywords: Any) -> Any:
        if threading.get_ident() != thread:
            return original(*arguments, **keywords)
        return function(original, *arguments, **keywords)

    setattr(owner, name, method)
    try:
        yield
    finally:
        if patched_before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, patched_before)
