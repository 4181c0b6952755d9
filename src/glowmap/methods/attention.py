"""Methods for transformers: who looked at whom, and what the score makes of it.

In the equations P_l is the attention of block l after its softmax, heads x queries x keys, and s the score. Only ``vit_cx``
looks at a layer: for the others the patches are the tokens that attend. Which rows are read out is seen in the gradient of the
score by the last block's output: where a class token is read, that is its row alone; where the tokens are averaged or pooled by
an attention, all rows count, each by the norm of its gradient. Every method needs blocks that attend over one grid of patches,
one after the other: where they attend within windows, or over several grids, a MethodError says so.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glowmap.errors import MethodError
from glowmap.methods._attention import Attention, Block
from glowmap.methods._masks import min_max, rescale, resize
from glowmap.methods._method import Query, method
from glowmap.shapes import Images, Maps, RawMaps


def clusters(distances: Tensor, below: float) -> list[list[int]]:
    """Merge the two nearest clusters again and again, as long as their furthest members lie less than ``below`` apart.

    ``distances`` is symmetric, things x things. The answer lists each cluster's members, the one with the first member first.
    Of equal distances the first in reading order goes first.
    """
    apart = distances.detach().to("cpu", torch.float64).clone()
    apart = torch.maximum(apart, apart.T).fill_diagonal_(torch.inf)
    members = [[thing] for thing in range(len(apart))]
    while True:
        nearest = int(apart.argmin())
        one, other = sorted(divmod(nearest, len(apart)))
        if not float(apart[one, other]) < below:
            return sorted(group for group in members if group)
        members[one] = sorted(members[one] + members[other])
        members[other] = []
        furthest = torch.maximum(apart[one], apart[other])
        apart[one], apart[:, one] = furthest, furthest
        apart[other], apart[:, other] = torch.inf, torch.inf


@method(
    paper="Abnar and Zuidema, ACL 2020, arXiv:2005.00928, eq. 1",
    use="a first look into a transformer: what could reach the read token, whatever the class",
)
def rollout(attention: Attention, output_gradients: Sequence[Tensor]) -> RawMaps:
    """Multiply the attention of all blocks: where the tokens that are read could have looked, whatever the class.

    ``prod_l rownorm(mean_h P_l + I)``, the last block to the left, and of the product the rows that are read out. The score
    decides which rows those are, and nothing else. The blocks are those of the patches' own sequence, up to the last that the
    score depends on.
    """
    patches = attention.patch_sequence
    last = attention.last_used(output_gradients, queries=patches, keys=patches)
    rows = attention.readout(output_gradients[last])
    for block in reversed(attention.blocks[: last + 1]):
        if block.query_sequence == block.key_sequence == patches:
            mixed = block.weights.mean(1) + torch.eye(block.weights.shape[-1]).to(block.weights)
            rows = (rows[:, None] @ (mixed / mixed.sum(2, keepdim=True)))[:, 0]
    return attention.maps(rows)


@method(
    paper="Chefer, Gur and Wolf, ICCV 2021, arXiv:2103.15679, eq. 5 to 11",
    use="transformers of every build, with cross-attention too: detectors, image and text",
)
def gae(attention: Attention, attention_gradients: Sequence[Tensor], output_gradients: Sequence[Tensor]) -> RawMaps:
    """Add up attention times its positive gradient from block to block: for every transformer, cross-attention and all.

    With ``A = mean_h relu(dP * P)``, dP = ds/dP, and R^st what sequence t is relevant to s, R^ss = I and R^st = 0 at first: where
    s looks at itself, ``R^st += A R^st`` for every t; where s looks at another sequence t, ``R^st += N(R^ss)^T A N(R^tt)`` and
    ``R^ss += A R^ts``. N divides the rows of R - I by their sums and adds I again. Two attentions that look at each other and of
    which neither is made of the other are taken at once. An encoder that never looks at its decoder has R^ts = 0, which gives the
    paper's rule for DETR. The map is the row of the token that is read out, without the patches' own I.
    """
    last = attention.last_used(output_gradients)
    blocks = attention.blocks[: last + 1]
    relevance = _relevance(blocks, attention_gradients)
    reader, patched = blocks[-1].query_sequence, attention.patch_sequence
    if (reader, patched) not in relevance:
        raise MethodError(
            f"no chain of attentions leads from the patches to what {attention.model} reads out, as it joins or merges tokens on "
            "the way; use rollout, legrad, grad_cam or layer_cam"
        )
    found = relevance[reader, patched]
    if reader == patched:
        found = found - torch.eye(found.shape[-1]).to(found)
    return attention.maps((attention.readout(output_gradients[last])[:, None] @ found)[:, 0])


@method(
    paper="Bousselham et al., ICCV 2025, arXiv:2404.03214, the definition of LeGrad",
    use="the choice for vision transformers: sharp, and cheap",
)
def legrad(attention: Attention, own_gradients: Sequence[Tensor]) -> RawMaps:
    """Add up how far more attention to each patch would raise the score of each block: the choice for vision transformers.

    ``sum_l mean_h,q relu(ds_l/dP_l)`` over the blocks l of the patches' sequence, the mean over heads and queries. s_l is the
    score that the head gives to the tokens of block l in the place of the last block's. (For CLIP the authors' code averages all
    tokens of a block first and hands the mean to the head; here the head reads what it reads of the last block, its class token
    or the mean.) Where one attention with queries of its own pools the tokens, as in SigLIP, P_l is that attention over the
    tokens of block l, as in the paper.
    """
    return attention.maps(torch.stack([gradient.relu().mean((1, 2)) for gradient in own_gradients]).sum(0))


@method(
    paper="Zhao et al., ICML 2024, the definition of Grad-ECLIP; arXiv:2502.18816",
    use="CLIP and its kind: which patches spoke for the text",
)
def grad_eclip(attention: Attention, output_gradients: Sequence[Tensor]) -> RawMaps:
    """Weigh what each patch handed on in the last block by the gradient there, all likely patches alike: for CLIP.

    ``sum_c ds/do_c v_ic lambda_i`` before the paper's ReLU, which is the heatmap's step here: o is the last attention's output
    for the class token, c runs over the channels of all heads, v are the values, and ``lambda_i = minmax_i cos(q, k_i)`` over the
    patches, in the place of the softmax, which leaves most patches nothing. Where several tokens are read out, each adds
    a map of its own. Where all patches are equally like the query, lambda is 1.
    """
    last = attention.last_used(output_gradients, keys=attention.patch_sequence)
    block, gradients = attention.blocks[last], output_gradients[last]
    if block.queries is None or block.keys is None:
        raise MethodError(
            f"the scores in the last attention of {attention.model} are no plain product of queries and keys, which grad_eclip "
            "compares; use legrad or gae"
        )
    queries, keys = (F.normalize(one.transpose(1, 2).flatten(2), dim=2) for one in (block.queries, block.keys))
    alike = (queries @ keys.transpose(1, 2))[:, :, attention.patches]
    low, high = alike.amin(2, keepdim=True), alike.amax(2, keepdim=True)
    loosened = torch.where(high > low, rescale(alike, low, high), 1)
    handed_on = (gradients @ block.values.transpose(2, 3)).sum(1)[:, :, attention.patches]
    return (handed_on * loosened).sum(1).reshape(len(alike), *attention.grid)


@method(
    paper="Xie et al., IJCAI 2023, arXiv:2211.03064, the definition of ViT-CX",
    use="a judge without gradients for transformers: some hundred passes",
    passes="2 a cluster of channels",
)
def vit_cx(
    activations: Maps,
    images: Images,
    rescore_images: Query,
    *,
    distance: float = 0.1,
    noise: float = 0.1,
    seed: int = 0,
) -> RawMaps:
    """Average masks made of the layer's own channels by what they cause: Score-CAM for transformers, without a gradient.

    Each channel's map is stretched to [0, 1]; maps that are alike are merged, as long as no two in a cluster are further apart
    than the cosine ``distance``, and each cluster's sum is stretched again: the masks M_i. With Z_i normal noise of deviation
    ``noise``, drawn from ``seed``, and U enlarging, ``s_i = s(x U(M_i) + Z_i (1 - U(M_i))) - s(x + Z_i (1 - U(M_i))) + s(x)``,
    which takes off what the noise alone did. The map is ``1/N sum_i s_i M_i / sum_j M_j``: no place gains by being covered often,
    and what all s_i have in common, s(x) among it, is the same everywhere. So it is the differences within the map that tell: its
    least value is taken off, which a cell that no mask covers has too.

    The authors enlarge first, and score by the softmax's probability; here the map stays at the layer's resolution and the score
    is the target's. They take the last block's first normalisation as the layer.
    """
    if not 0 < distance <= 1 or noise < 0:
        raise MethodError(
            f"vit_cx takes a distance in (0, 1] and noise of at least 0, not {distance:g} and {noise:g}; try 0.1 for both"
        )
    masks = _cluster_masks(min_max(activations)[0], distance)
    seeds: list[int] = torch.randint(2**62, (len(masks),), generator=torch.Generator().manual_seed(seed)).tolist()
    shape = images.shape[1:]

    def make(part: slice) -> Tensor:
        items = range(2 * len(masks))[part]
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seeds[i % len(masks)])) for i in items]
        shown = resize(masks[[i % len(masks) for i in items], None], shape[1:])
        hidden = torch.tensor([i < len(masks) for i in items], device=images.device).reshape(-1, *[1] * len(shape))
        return images * torch.where(hidden, shown, 1) + noise * torch.stack(draws).to(images) * (1 - shown)

    asked: Tensor = rescore_images(2 * len(masks), make)
    caused = (asked[: len(masks)] - asked[len(masks) :]).to(masks.dtype)
    covered = masks.sum(0)
    found = torch.tensordot(caused, masks, 1) / covered.masked_fill(covered == 0, 1) / len(masks)
    return torch.where(covered > 0, found - found[covered > 0].min(), 0)[None]


def _cluster_masks(maps: Tensor, distance: float) -> Tensor:
    """Merge maps that are alike into masks: count x space; a flat map is none."""
    maps = maps[maps.flatten(1).any(1)]
    if not len(maps):
        raise MethodError("every channel of the layer is flat, so that vit_cx finds no mask in it; name another layer")
    flat = F.normalize(maps.flatten(1), dim=1)
    sums = torch.stack([maps[group].sum(0) for group in clusters(1 - flat @ flat.T, distance)])
    if len(sums) == 1:  # divided by itself it is the same everywhere
        raise MethodError(
            f"all channels of the layer are within a distance of {distance:g} of each other, so that vit_cx has but one mask and "
            "nothing to compare; give a smaller distance"
        )
    return min_max(sums[None])[0]


def _relevance(blocks: Sequence[Block], gradients: Sequence[Tensor]) -> dict[tuple[int, int], Tensor]:
    """Compute by Chefer's rules how relevant each sequence (second in the key) is to each other (first in the key)."""
    relevance: dict[tuple[int, int], Tensor] = {}
    for block in blocks:
        queries, keys = block.weights.shape[-2:]
        for number, count in ((block.query_sequence, queries), (block.key_sequence, keys)):
            relevance[number, number] = torch.eye(count).to(block.weights).expand(len(block.weights), -1, -1)
    before, previous = relevance, None
    for number, (block, gradient) in enumerate(zip(blocks, gradients, strict=False)):
        pair = block.query_sequence, block.key_sequence
        mirrors = previous is not None and (previous.key_sequence, previous.query_sequence) == pair
        at_once = mirrors and pair[0] != pair[1] and number - 1 not in block.inputs
        added = _added(before if at_once else relevance, block, (gradient * block.weights).relu().mean(1))
        before, previous = relevance, block
        relevance = relevance | {key: relevance[key] + new if key in relevance else new for key, new in added.items()}
    return relevance


def _added(relevance: dict[tuple[int, int], Tensor], block: Block, weighed: Tensor) -> dict[tuple[int, int], Tensor]:
    """Compute what one block adds to the relevance of sequences to the sequence of its queries."""
    s, t = block.query_sequence, block.key_sequence
    if s == t:
        return {(s, source): weighed @ matrix for (to, source), matrix in relevance.items() if to == s}
    added = {(s, t): _normalised(relevance[s, s]).transpose(1, 2) @ weighed @ _normalised(relevance[t, t])}
    if (t, s) in relevance:
        added[s, s] = weighed @ relevance[t, s]
    return added


def _normalised(relevance: Tensor) -> Tensor:
    """Scale each row of ``relevance - I`` to the sum 1, and add I again: a token counts as much as all others together."""
    identity = torch.eye(relevance.shape[-1]).to(relevance)
    others = relevance - identity
    sums = others.sum(2, keepdim=True)
    return torch.where(sums == 0, 0, others / sums.masked_fill(sums == 0, 1)) + identity
