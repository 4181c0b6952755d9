"""Record the attention of one forward pass: the weights of every attention, in tensors that the score depends on.

Operations are recorded and not modules, so that no configuration has to be changed: ``scaled_dot_product_attention`` is computed
step by step, ``nn.MultiheadAttention`` on its plain path, and of eager attention the softmax is recognised that is multiplied
with values. Anything else (a fused kernel of another library, linear attention, scripted modules) is not recorded.
"""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from glowmap.capture.hooks import hookable, hooked

_PRODUCTS = {"matmul", "__matmul__", "bmm"}
_COPYING = {
    *("dropout", "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone"),
    *("view", "reshape", "flatten", "unflatten", "permute", "unsqueeze", "squeeze", "expand", "nan_to_num"),
    *("linear", "conv2d"),  # heads that talk to each other
}
_SCORING = _COPYING | {
    *("mul", "div", "add", "sub", "true_divide", "masked_fill", "where", "clamp", "tanh", "softplus"),
    *("__mul__", "__rmul__", "__imul__", "__truediv__", "__itruediv__", "__add__", "__radd__", "__iadd__", "__sub__"),
}
_SIGNATURE = inspect.signature(F.multi_head_attention_forward)
# Its body, without the check for a mode: with that, the mode would get the call as a whole, and nothing inside.
_MULTI_HEAD = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


@dataclass(eq=False)
class AttentionCall:
    """One attention as it was computed: (rows x) heads x tokens x channels, and the weights heads x queries x keys."""

    weights: Tensor
    queries: Tensor | None  # None where the scores are not a plain product of queries and keys
    keys: Tensor | None
    values: Tensor
    outputs: Tensor


@dataclass(eq=False)
class TokenSequence:
    """A sequence of tokens that attends or is attended to."""

    count: int
    is_joined: bool  # made of sequences of another length that attended before
    is_of_image: bool = False  # its first attention is to itself, and depends on the images already


@dataclass(eq=False)
class AttentionEdge:
    """One attention, the numbers of the sequences of its queries and keys, and of the attentions that it is computed from."""

    call: AttentionCall
    query_sequence: int
    key_sequence: int
    inputs: frozenset[int]


class AttentionRecorder(TorchFunctionMode):
    """Records every attention inside this context, in order.

    ``enclosing`` lists by the number of an attention the modules around it alone, innermost first, with their outputs
    (:func:`record_enclosing`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []
        self.enclosing: dict[int, list[tuple[nn.Module, Any]]] = defaultdict(list)
        self._scores: Any = WeakTensorKeyDictionary()  # the queries and keys that a tensor of scores is made of
        self._weights: Any = WeakTensorKeyDictionary()  # the same for what a softmax made of the scores

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._multi_head(_SIGNATURE.bind(*args, **kwargs).arguments)
        if func is F.scaled_dot_product_attention:
            return self._scaled_dot_product(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            return self._product(func, args, kwargs)
        if name == "einsum":
            return self._einsum(func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._follow(name if name.startswith("__") else name.rstrip("_"), result, (*args, *kwargs.values()), kwargs)
        return result

    def _follow(self, name: str, result: Tensor, arguments: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Follow scores to their softmax, and weights to the values that they are multiplied with."""
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if name == "softmax":
            axis = kwargs.get("dim", arguments[1] if len(arguments) > 1 else None)
            if result.ndim >= 3 and axis in (-1, result.ndim - 1):
                self._weights[result] = self._scores.get(tensors[0], (None, None))
            return
        for known, operations in ((self._weights, _COPYING), (self._scores, _SCORING)):
            if name in operations:
                origin = next((known[tensor] for tensor in tensors if tensor in known), None)
                if origin is not None:
                    known[result] = origin

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        left, right = (*args, *kwargs.values())[:2]
        if left in self._weights:
            return self._record(left, self._weights[left], right, lambda weights: func(weights, right))
        result = func(*args, **kwargs)
        if right.ndim >= 3:
            self._scores[result] = (left, right.transpose(-2, -1))
        return result

    def _einsum(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Read an equation such as ``bhqk,bkhd->bqhd`` as the product that it is."""
        equation, *operands = args
        pair = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
        sides = equation.replace(" ", "").replace("->", ",").split(",") if isinstance(equation, str) else []
        if len(sides) != 3 or len(pair) != 2 or "." in equation:
            return func(*args, **kwargs)
        (left, right, out), (first, second) = sides, pair
        summed, channel = (set(left) & set(right)) - set(out), (set(right) & set(out)) - set(left)
        if first in self._weights and {left[-1]} == summed and len(channel) == 1 and left[-2] in out:
            batch, (last,) = left[:-2], channel
            values = second.permute([right.index(axis) for axis in batch + left[-1] + last])
            product = self._record(first, self._weights[first], values, lambda weights: weights @ values)
            return product.permute([(batch + left[-2] + last).index(axis) for axis in out])
        result = func(*args, **kwargs)
        if len(summed) == 1 and len(out) >= 3 and out[-2] in left and out[-1] in right:
            (last,), batch = summed, out[:-2]
            if {*left} == {*batch, out[-2], last} and {*right} == {*batch, out[-1], last}:
                queries = first.permute([left.index(axis) for axis in batch + out[-2] + last])
                keys = second.permute([right.index(axis) for axis in batch + out[-1] + last])
                self._scores[result] = (queries, keys)
        return result

    def _multi_head(self, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        with self:
            output, _ = _MULTI_HEAD(**{**arguments, "need_weights": False})
        if not arguments.get("need_weights", True):
            return output, None
        weights = self.calls[-1].weights
        weights = weights.mean(1) if arguments.get("average_attn_weights", True) else weights
        return output, (weights if arguments["query"].ndim == 3 else weights[0]).to(output.dtype)

    def _scaled_dot_product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """``softmax(q k^T scale + mask) v``, step by step and without dropout, never in half precision."""
        device, dtype = query.device.type, query.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            precision = torch.promote_types(query.dtype, torch.float32)
            queries, keys, values = query.to(precision), key.to(precision), value.to(precision)
            if enable_gqa:  # several heads of queries share one of keys
                keys = keys.repeat_interleave(queries.shape[-3] // keys.shape[-3], -3)
                values = values.repeat_interleave(queries.shape[-3] // values.shape[-3], -3)
            scores = queries @ keys.transpose(-2, -1) * (1 / math.sqrt(queries.shape[-1]) if scale is None else scale)
            weights = _softmax(scores, attn_mask, causal=is_causal)
            return self._record(weights, (queries, keys), values, lambda weights: weights @ values).to(dtype)

    def _record(self, weights: Tensor, origin: Any, values: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        if (
            not weights.requires_grad
        ):  # they are the same for every image; the score has a gradient by them all the same
            weights = weights.detach().requires_grad_()
        outputs = product(weights)
        self.calls.append(AttentionCall(weights, origin[0], origin[1], values, outputs))
        return outputs


def _softmax(scores: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Return the softmax under a mask; all weights of a query that may attend to nothing are zero."""
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    nowhere = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(nowhere, 0).softmax(-1).masked_fill(nowhere, 0)


@contextmanager
def record_enclosing(model: nn.Module, recorder: AttentionRecorder) -> Iterator[None]:
    """Record which modules run around exactly one attention, innermost first, and their outputs."""
    calls_before: list[int] = []  # for each running module, how many attentions had run when it began

    def begin(_module: nn.Module, _arguments: Any, _keywords: Any) -> None:
        calls_before.append(len(recorder.calls))

    def end(module: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> None:
        first = calls_before.pop()
        if len(recorder.calls) == first + 1:
            recorder.enclosing[first].append((module, output))

    with hooked(hookable(model).values(), before=begin, after=end):
        yield


def attention_edges(calls: Sequence[AttentionCall], images: Tensor) -> tuple[list[AttentionEdge], list[TokenSequence]]:
    """Find out between which sequences of tokens the attentions lead, by what they are computed from.

    Attentions are left out that do not depend on the images (the leaf of the graph), and that no other which does is computed
    from: a tower for text. Queries and keys that are computed from the same attentions are one sequence that attends to itself.
    """
    numbers = {call.outputs.grad_fn: number for number, call in enumerate(calls)}
    query_inputs, key_inputs = [], []
    for call in calls:
        queries = call.weights if call.queries is None else call.queries
        keys = call.weights if call.keys is None else call.keys
        query_inputs.append(_inputs([queries], numbers, images))
        key_inputs.append(_inputs([keys, call.values], numbers, images))
    of_image = _depend_on_image(query_inputs, key_inputs)
    used: set[int] = set()
    for number in reversed(range(len(calls))):
        if of_image[number] or number in used:
            used |= {number, *query_inputs[number][0], *key_inputs[number][0]}
    places = {number: place for place, number in enumerate(sorted(used))}
    edges: list[AttentionEdge] = []
    sequences: list[TokenSequence] = []

    def sequence(count: int, inputs: frozenset[int]) -> int:
        """Return the number of the sequence of so many tokens that the inputs return, or of a new one."""
        for place in sorted((places[number] for number in inputs), reverse=True):
            if sequences[edges[place].query_sequence].count == count:
                return edges[place].query_sequence
        sequences.append(TokenSequence(count, bool(inputs)))
        return len(sequences) - 1

    for number in sorted(used):
        call, inputs = calls[number], query_inputs[number][0]
        query_count, key_count = call.weights.shape[-2:]
        new = len(sequences)
        query_sequence = sequence(query_count, inputs)
        is_to_itself = query_count == key_count and (call.keys is None or query_inputs[number] == key_inputs[number])
        key_sequence = query_sequence if is_to_itself else sequence(key_count, key_inputs[number][0])
        if query_sequence == new:
            sequences[query_sequence].is_of_image = is_to_itself and of_image[number]
        all_inputs = frozenset(places[source] for source in inputs | key_inputs[number][0])
        edges.append(AttentionEdge(call, query_sequence, key_sequence, all_inputs))
    return edges, sequences


_Inputs: TypeAlias = tuple[frozenset[int], bool]  # the numbers of attentions, and whether the images are an input


def _depend_on_image(query_inputs: Sequence[_Inputs], key_inputs: Sequence[_Inputs]) -> list[bool]:
    """Return for each attention whether it depends on the images, directly or by earlier attentions."""
    depends: list[bool] = []
    for (of_queries, queries_directly), (of_keys, keys_directly) in zip(query_inputs, key_inputs, strict=True):
        depends.append(queries_directly or keys_directly or any(depends[number] for number in of_queries | of_keys))
    return depends


def _inputs(tensors: Sequence[Tensor], numbers: dict[Any, int], images: Tensor) -> _Inputs:
    """List the attentions that tensors are computed from with no other between, and whether the images are among the inputs."""
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    visited: set[Any] = {None}
    inputs: set[int] = set()
    from_images = False
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        if node in numbers:
            inputs.add(numbers[node])
            continue
        from_images = from_images or getattr(node, "variable", None) is images
        waiting += [previous for previous, _ in node.next_functions]
    return frozenset(inputs), from_images
