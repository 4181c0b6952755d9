"""One traced pass: what every module of a model put out on the way from the images to a score, and in which order."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.layers.layout import Grid, known_grids


@dataclass(eq=False)
class TracedOutput:
    """A tensor that modules put out, and the names under which it can be had, innermost first."""

    tensor: Tensor
    order: int
    names: list[str] = field(default_factory=list)  # with "#2" for a second run
    modules: list[nn.Module] = field(default_factory=list)
    alone: list[bool] = field(default_factory=list)  # by name: the module returned this tensor and nothing around it
    handed_through: list[str] = field(default_factory=list)  # names of modules that returned it as it came
    as_it_came: bool = False  # no module made it: the first that returned it was given it
    entered: Tensor | None = None  # the first tensor that the innermost module was given

    @property
    def name(self) -> str:
        """The name that a person would use: the outermost of the modules that return this tensor as it is."""
        best = min(range(len(self.names)), key=lambda i: (not self.alone[i], self.names[i].count("."), -i))
        return self.names[best]

    @property
    def kind(self) -> str:
        """The class of the module by that name."""
        return type(self.modules[self.names.index(self.name)]).__name__

    @property
    def makes_nothing(self) -> bool:
        """Whether it came without a parameter's doing, as more or fewer of the same or as it was: pooling, resizing, identity."""
        module, entered = self.modules[0], self.entered
        if self.as_it_came:
            return True
        if entered is None or entered is self.tensor or any(True for _ in module.parameters()):
            return False  # or it was written into
        if entered.shape != self.tensor.shape:
            return entered.numel() != self.tensor.numel()
        return bool(torch.equal(entered.detach(), self.tensor.detach()))

    @property
    def rearranged(self) -> Tensor | None:
        """The tensor of which it is another arrangement, where it is no more than that."""
        module, entered = self.modules[0], self.entered
        if entered is None or entered.shape == self.tensor.shape or any(True for _ in module.parameters()):
            return None
        return entered

    @property
    def is_bare_linear(self) -> bool:
        """Whether it is the bare product of a linear layer: queries, keys, values, the inside of a perceptron."""
        first = self.modules[0]
        if type(first) is not nn.Linear:
            return False
        own = sum(parameter.numel() for parameter in first.parameters())
        return all(sum(one.numel() for one in module.parameters()) == own for module in self.modules)


@dataclass
class Traced:
    """What a traced pass left: every floating tensor of three axes or more, in the order in which they came into being."""

    puts: list[TracedOutput] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)  # that convolutions made
    weighed: dict[int, int] = field(default_factory=dict)  # by Put.order: how many parameters its innermost module owns

    def parametric_after(self, put: TracedOutput) -> bool:
        """Whether a module with parameters of its own ran after this tensor was made."""
        return any(weight for order, weight in self.weighed.items() if order > put.order)


@contextmanager
def traced(model: nn.Module) -> Iterator[Traced]:
    """Trace the forward pass that is run inside: the model must be borrowed, and the images in need of a gradient."""
    trace, owner = Traced(), threading.get_ident()
    runs: dict[str, int] = {}
    by_tensor: dict[int, tuple[TracedOutput, int]] = {}  # the version tells when it was written to since
    count = 0

    def caution(name: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def keep(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
            nonlocal count
            if threading.get_ident() != owner:
                return
            count += 1
            runs[name] = runs.get(name, 0) + 1
            given = [tensor for tensor in tree.leaves([arguments, keywords]) if tensor.is_floating_point()]
            trace.weighed[count] = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            maps = [tensor for tensor in tree.leaves(output) if tensor.ndim >= 3 and tensor.is_floating_point()]
            if len(maps) != 1:
                return  # nothing that can be recorded
            put, version = by_tensor.get(id(maps[0]), (None, -1))
            unwritten = maps[0]._version == (0 if put is None else version)
            as_it_came = unwritten and any(maps[0] is tensor for tensor in given)
            if as_it_came and put is not None:
                put.handed_through.append(f"{name}#{runs[name]}")
                return
            if put is None or version != maps[0]._version:
                if put is not None and put in trace.puts:  # overwritten in place: the record would be spoiled
                    trace.puts.remove(put)
                    trace.weighed[count] += trace.weighed[put.order]
                put = TracedOutput(maps[0], count, entered=given[0] if given else None, as_it_came=as_it_came)
                by_tensor[id(maps[0])] = (put, maps[0]._version)
                trace.puts.append(put)
            put.names.append(f"{name}#{runs[name]}")
            put.modules.append(module)
            put.alone.append(isinstance(output, Tensor))

        return keep

    with ExitStack() as hooked:
        trace.grids = hooked.enter_context(known_grids(model))
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                hooked.callback(module.register_forward_hook(caution(name), with_kwargs=True).remove)
        yield trace

    def unmarked(names: list[str]) -> list[str]:
        """Leave the run out of the name of what ran once."""
        return [name if runs[(plain := name.rpartition("#")[0])] > 1 else plain for name in names]

    for put in trace.puts:
        put.names, put.handed_through = unmarked(put.names), unmarked(put.handed_through)
    # an operation outside any module may have written into a tensor after it was put out
    trace.puts = [put for put in trace.puts if by_tensor[id(put.tensor)][1] == put.tensor._version]
