"""Watch the attention of one whole run: who looked at whom and how strongly, in tensors that lie on the way to the score.

Operations are watched and not modules, so that no configuration has to be switched: ``scaled_dot_product_attention`` is computed
in the open, ``nn.MultiheadAttention`` on its plain path, and of eager attention the softmax is recognised that is multiplied with
values. What is none of these (a fused kernel of another library, linear attention, scripted modules) is not seen.
"""

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

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
# Its body, which does not ask again whether a mode is on: else the mode would see the call as a whole, and nothing inside.
_MULTI_HEAD = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


@dataclass(eq=False)
class AttentionCall:
    """One attention as it was computed: (rows x) heads x tokens x channels, and the weights heads x queries x keys."""

    weights: Tensor
    queries: Tensor | None  # None where the scores were no plain product
    keys: Tensor | None
    values: Tensor
    outputs: Tensor


@dataclass(eq=False)
class Tokens:
    """A sequence of tokens that attends or is attended to."""

    count: int
    joined: bool  # made of sequences of another length that attended before
    of_image: bool = False  # its first attention is to itself, and already knows the picture


@dataclass(eq=False)
class AttentionEdge:
    """One attention, with the numbers of the sequences that ask and are asked, and of the attentions that it is made of."""

    seen: AttentionCall
    of: int
    over: int
    after: frozenset[int]


class AttentionRecorder(TorchFunctionMode):
    """Keep every attention that runs inside, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[AttentionCall] = []
        self.around: dict[int, list[tuple[nn.Module, Any]]] = defaultdict(list)
        self._scores: Any = WeakTensorKeyDictionary()  # what queries and keys a tensor of scores comes from
        self._weights: Any = WeakTensorKeyDictionary()  # the same for what a softmax made of them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._multi_head(_SIGNATURE.bind(*args, **kwargs).arguments)
        if func is F.scaled_dot_product_attention:
            return self._in_the_open(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            return self._product(func, args, kwargs)
        if name == "einsum":
            return self._einsum(func, args, kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._follow(name if name.startswith("__") else name.rstrip("_"), result, (*args, *kwargs.values()), kwargs)
        return result

    def _follow(self, name: str, result: Tensor, given: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Follow scores to their softmax, and weights to the values that they are multiplied with."""
        tensors = [one for one in given if isinstance(one, Tensor)]
        if name == "softmax":
            axis = kwargs.get("dim", given[1] if len(given) > 1 else None)
            if result.ndim >= 3 and axis in (-1, result.ndim - 1):
                self._weights[result] = self._scores.get(tensors[0], (None, None))
            return
        for known, keeping in ((self._weights, _COPYING), (self._scores, _SCORING)):
            origin = next((known[one] for one in tensors if one in known), None) if name in keeping else None
            if origin is not None:
                known[result] = origin

    def _product(self, func: Any, args: Any, kwargs: Any) -> Any:
        one, other = (*args, *kwargs.values())[:2]
        if one in self._weights:
            return self._keep(one, self._weights[one], other, lambda weights: func(weights, other))
        result = func(*args, **kwargs)
        if other.ndim >= 3:
            self._scores[result] = (one, other.transpose(-2, -1))
        return result

    def _einsum(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Read an equation such as ``bhqk,bkhd->bqhd`` as the product that it is."""
        equation, *operands = args
        pair = operands[0] if len(operands) == 1 and not isinstance(operands[0], Tensor) else operands
        sides = equation.replace(" ", "").replace("->", ",").split(",") if isinstance(equation, str) else []
        if len(sides) != 3 or len(pair) != 2 or "." in equation:
            return func(*args, **kwargs)
        (left, right, out), (one, other) = sides, pair
        summed, channel = (set(left) & set(right)) - set(out), (set(right) & set(out)) - set(left)
        if one in self._weights and {left[-1]} == summed and len(channel) == 1 and left[-2] in out:
            batch, (last,) = left[:-2], channel
            values = other.permute([right.index(axis) for axis in batch + left[-1] + last])
            product = self._keep(one, self._weights[one], values, lambda weights: weights @ values)
            return product.permute([(batch + left[-2] + last).index(axis) for axis in out])
        result = func(*args, **kwargs)
        if len(summed) == 1 and len(out) >= 3 and out[-2] in left and out[-1] in right:
            (last,), batch = summed, out[:-2]
            if {*left} == {*batch, out[-2], last} and {*right} == {*batch, out[-1], last}:
                queries = one.permute([left.index(axis) for axis in batch + out[-2] + last])
                keys = other.permute([right.index(axis) for axis in batch + out[-1] + last])
                self._scores[result] = (queries, keys)
        return result

    def _multi_head(self, given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        with self:
            output, _ = _MULTI_HEAD(**{**given, "need_weights": False})
        if not given.get("need_weights", True):
            return output, None
        weights = self.found[-1].weights
        weights = weights.mean(1) if given.get("average_attn_weights", True) else weights
        return output, (weights if given["query"].ndim == 3 else weights[0]).to(output.dtype)

    def _in_the_open(
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
        kind, dtype = query.device.type, query.dtype
        if torch.is_autocast_enabled(kind) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            wide = torch.promote_types(query.dtype, torch.float32)
            queries, keys, values = query.to(wide), key.to(wide), value.to(wide)
            if enable_gqa:  # several heads ask the same keys
                keys = keys.repeat_interleave(queries.shape[-3] // keys.shape[-3], -3)
                values = values.repeat_interleave(queries.shape[-3] // values.shape[-3], -3)
            scores = queries @ keys.transpose(-2, -1) * (1 / math.sqrt(queries.shape[-1]) if scale is None else scale)
            weights = _softmax(scores, attn_mask, causal=is_causal)
            return self._keep(weights, (queries, keys), values, lambda used: used @ values).to(dtype)

    def _keep(self, weights: Tensor, origin: Any, values: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        if not weights.requires_grad:  # the same for every picture; the score has a gradient by it all the same
            weights = weights.detach().requires_grad_()
        outputs = product(weights)
        self.found.append(AttentionCall(weights, origin[0], origin[1], values, outputs))
        return outputs


def _softmax(scores: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Take the softmax under a mask; who may look at nothing looks at nothing."""
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    nowhere = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(nowhere, 0).softmax(-1).masked_fill(nowhere, 0)


@contextmanager
def enclosing(model: nn.Module, watcher: AttentionRecorder) -> Iterator[None]:
    """Record which modules ran around exactly one attention, innermost first, and their outputs."""
    calls_before: list[int] = []  # for each running module, how many attentions had run when it began

    def begin(_module: nn.Module, _arguments: Any, _keywords: Any) -> None:
        calls_before.append(len(watcher.found))

    def end(module: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> None:
        first = calls_before.pop()
        if len(watcher.found) == first + 1:
            watcher.around[first].append((module, output))

    with hooked(hookable(model).values(), before=begin, after=end):
        yield


def linked(found: Sequence[AttentionCall], images: Tensor) -> tuple[list[AttentionEdge], list[Tokens]]:
    """Tell which sequences of tokens the attentions lead between, by what they are computed from.

    Left out is what neither knows the picture (``images``, the leaf of the graph) nor is part of what does: a tower for text.
    Queries and keys that are made of the same attentions are one sequence that looks at itself.
    """
    known = {one.outputs.grad_fn: number for number, one in enumerate(found)}
    asking = [_made_of([one.weights if one.queries is None else one.queries], known, images) for one in found]
    asked = [_made_of([one.weights if one.keys is None else one.keys, one.values], known, images) for one in found]
    seeing: list[bool] = []
    for (mine, directly), (theirs, too) in zip(asking, asked, strict=True):
        seeing.append(directly or too or any(seeing[number] for number in mine | theirs))
    kept: set[int] = set()
    for number in reversed(range(len(found))):
        if seeing[number] or number in kept:
            kept |= {number, *asking[number][0], *asked[number][0]}
    places = {number: place for place, number in enumerate(sorted(kept))}
    links: list[AttentionEdge] = []
    sequences: list[Tokens] = []

    def sequence(count: int, made_of: frozenset[int]) -> int:
        for number in sorted((places[one] for one in made_of), reverse=True):
            if sequences[links[number].of].count == count:
                return links[number].of
        sequences.append(Tokens(count, bool(made_of)))
        return len(sequences) - 1

    for number in sorted(kept):
        one, ups = found[number], asking[number][0]
        first = len(sequences)
        of = sequence(one.weights.shape[-2], ups)
        itself = one.weights.shape[-2] == one.weights.shape[-1] and (
            one.keys is None or asking[number] == asked[number]
        )
        over = of if itself else sequence(one.weights.shape[-1], asked[number][0])
        if of == first:
            sequences[of].of_image = itself and seeing[number]
        links.append(AttentionEdge(one, of, over, frozenset(places[one] for one in ups | asked[number][0])))
    return links, sequences


def _made_of(tensors: Sequence[Tensor], known: dict[Any, int], images: Tensor) -> tuple[frozenset[int], bool]:
    """List the attentions that tensors are computed from without another between, and whether the images are."""
    waiting: list[Any] = [one.grad_fn for one in tensors]
    visited: set[Any] = {None}
    made_of: set[int] = set()
    directly = False
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        if node in known:
            made_of.add(known[node])
            continue
        directly = directly or getattr(node, "variable", None) is images
        waiting += [before for before, _ in node.next_functions]
    return frozenset(made_of), directly
