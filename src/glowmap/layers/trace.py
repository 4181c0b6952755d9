"""One traced forward pass: the outputs of all modules between the images and a score, in the order in which they ran."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import hookable, hooked
from glowmap.layers.layout import Grid, known_grids


@dataclass(eq=False)
class TracedOutput:
    """A tensor that one or more modules returned, and the names of these modules, innermost first."""

    tensor: Tensor
    order: int  # how many modules had finished when it was made, itself included
    names: list[str] = field(default_factory=list)  # with "#2" for a second run
    modules: list[nn.Module] = field(default_factory=list)
    is_whole: list[bool] = field(default_factory=list)  # by name: the module returned this tensor and nothing around it
    passed_by: list[str] = field(default_factory=list)  # names of later modules that returned it unchanged
    is_input: bool = False  # no module made it: the first that returned it also got it
    input: Tensor | None = None  # the first tensor that the innermost module got

    @property
    def name(self) -> str:
        """The outermost of the modules that return this tensor and nothing around it."""
        best = min(range(len(self.names)), key=lambda i: (not self.is_whole[i], self.names[i].count("."), -i))
        return self.names[best]

    @property
    def kind(self) -> str:
        """The class of the module with that name."""
        return type(self.modules[self.names.index(self.name)]).__name__

    @property
    def is_parameter_free(self) -> bool:
        """True if no parameter made it: pooling, resizing, identity."""
        if self.is_input:
            return True
        if self.input is None or self.input is self.tensor or _has_parameters(self.modules[0]):
            return False  # an input that is also the output was written into
        if self.input.shape != self.tensor.shape:
            return self.input.numel() != self.tensor.numel()
        return bool(torch.equal(self.input.detach(), self.tensor.detach()))

    @property
    def rearranged_from(self) -> Tensor | None:
        """The tensor that a module without parameters reshaped, pooled or permuted to this one; None for others."""
        if self.input is None or self.input.shape == self.tensor.shape or _has_parameters(self.modules[0]):
            return None
        return self.input

    @property
    def is_bare_linear(self) -> bool:
        """True for the bare product of a linear layer: queries, keys, values, the inside of a perceptron."""
        first = self.modules[0]
        if type(first) is not nn.Linear:
            return False
        parameters = sum(parameter.numel() for parameter in first.parameters())
        return all(sum(parameter.numel() for parameter in module.parameters()) == parameters for module in self.modules)


@dataclass
class Trace:
    """A traced pass: every floating tensor of three axes or more that a module returned, in the order of creation."""

    outputs: list[TracedOutput] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)  # that convolutions made
    parameters: dict[int, int] = field(default_factory=dict)  # by order: how many the module owns that finished then

    def has_parameters_after(self, output: TracedOutput) -> bool:
        """Return whether a module with parameters of its own ran after this tensor was made."""
        return any(count for order, count in self.parameters.items() if order > output.order)


@contextmanager
def traced(model: nn.Module) -> Iterator[Trace]:
    """Trace the forward pass inside this context. The model must be borrowed; the images must require a gradient."""
    tracer = _Tracer({module: name for name, module in hookable(model).items()})
    with known_grids(model) as tracer.trace.grids, hooked(tracer.names, after=tracer.add):
        yield tracer.trace
    tracer.finish()


class _Tracer:
    """Fills a trace from a hook on every module."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.names = names
        self.trace = Trace()
        self._runs: dict[str, int] = {}
        self._by_tensor: dict[int, TracedOutput] = {}
        # of each tensor when it was added; a later one means that it was overwritten
        self._versions: dict[int, int] = {}

    def add(self, module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        """Add the tensor that a module returned, or the module's name to a tensor that is known."""
        name, order = self.names[module], len(self.trace.parameters) + 1
        self._runs[name] = self._runs.get(name, 0) + 1
        run_name = f"{name}#{self._runs[name]}"
        self.trace.parameters[order] = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        tensors = [tensor for tensor in tree.leaves(output) if tensor.ndim >= 3 and tensor.is_floating_point()]
        if len(tensors) != 1:
            return  # nothing that can be recorded
        (tensor,) = tensors
        inputs = [value for value in tree.leaves([arguments, keywords]) if value.is_floating_point()]
        known = self._by_tensor.get(id(tensor))
        is_unwritten = tensor._version == (0 if known is None else self._versions[id(tensor)])
        is_input = is_unwritten and any(tensor is value for value in inputs)
        if is_input and known is not None:
            known.passed_by.append(run_name)
            return
        if known is None or tensor._version != self._versions[id(tensor)]:
            if known is not None and known in self.trace.outputs:  # overwritten in place: its record would be wrong
                self.trace.outputs.remove(known)
                self.trace.parameters[order] += self.trace.parameters[known.order]
            known = TracedOutput(tensor, order, input=inputs[0] if inputs else None, is_input=is_input)
            self._by_tensor[id(tensor)], self._versions[id(tensor)] = known, tensor._version
            self.trace.outputs.append(known)
        known.names.append(run_name)
        known.modules.append(module)
        known.is_whole.append(isinstance(output, Tensor))

    def finish(self) -> None:
        """Drop the run from the names of modules that ran once, and drop tensors that were overwritten later."""
        for output in self.trace.outputs:
            output.names, output.passed_by = self._without_run(output.names), self._without_run(output.passed_by)
        # an operation outside any module may have written into a tensor
        self.trace.outputs = [
            output for output in self.trace.outputs if self._versions[id(output.tensor)] == output.tensor._version
        ]

    def _without_run(self, names: list[str]) -> list[str]:
        return [name if self._runs[(plain := name.rpartition("#")[0])] > 1 else plain for name in names]


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
