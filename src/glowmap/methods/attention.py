"""Methods for transformers: which tokens attend to which, and how the score depends on it.

In the equations P_l is the attention of block l after its softmax, heads x queries x keys, and s the score. Only ``vit_cx``
needs a layer: the maps of the others lie on the patches that attend. Rows of the attention are read out by the norm of the
score's gradient at the last block's output: only the row of the class token where the head reads that, all rows where the
head averages the tokens or pools them by attention. The methods need blocks that attend over one grid of patches, in
sequence. They raise MethodError for attention within windows or over several grids.
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
    """Cluster by complete linkage: merge the two nearest clusters while their furthest members are less than ``below`` apart.

    ``distances`` is symmetric, items x items. Returns the members of each cluster, ordered by their first member. Of equal
    distances the first in row order is merged first.
    """
    linkage = distances.detach().to("cpu", torch.float64).clone()
    linkage = torch.maximum(linkage, linkage.T).fill_diagonal_(torch.inf)
    members = [[item] for item in range(len(linkage))]
    while True:
        first, second = sorted(divmod(int(linkage.argmin()), len(linkage)))
        if not float(linkage[first, second]) < below:
            return sorted(group for group in members if group)
        members[first] = sorted(members[first] + members[second])
        members[second] = []
        furthest = torch.maximum(linkage[first], linkage[second])
        linkage[first], linkage[:, first] = furthest, furthest
        linkage[second], linkage[:, second] = torch.inf, torch.inf


@method(
    paper="Abnar and Zuidema, ACL 2020, arXiv:2005.00928, eq. 1",
    use="a first look into a transformer: which patches can reach the output, whatever the class",
)
def rollout(attention: Attention, output_gradients: Sequence[Tensor]) -> RawMaps:
    """Multiply the attention of all blocks: which patches can reach the tokens that the head reads, whatever the class.

    ``prod_l rownorm(mean_h P_l + I)``, the last block on the left; of the product the rows that are read out. The score only
    decides which rows these are. The blocks are those of the patches' sequence, up to the last that the score depends on.
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
    use="transformers with cross-attention: detectors, models of image and text",
)
def gae(attention: Attention, attention_gradients: Sequence[Tensor], output_gradients: Sequence[Tensor]) -> RawMaps:
    """Accumulate attention times its positive gradient over the blocks: for all transformers, with cross-attention too.

    With ``A = mean_h relu(dP * P)``, dP = ds/dP, and R^st the relevance of sequence t for sequence s, at first R^ss = I and
    R^st = 0: for self-attention of s, ``R^st += A R^st`` for every t; for attention of s to another sequence t,
    ``R^st += N(R^ss)^T A N(R^tt)`` and ``R^ss += A R^ts``. N divides the rows of R - I by their sums and adds I again. Two
    sequences that attend to each other in blocks that do not depend on each other are updated at once. An encoder that never
    attends to its decoder has R^ts = 0, which gives the paper's rule for DETR. The map is the row that is read out, without I for
    the patches.
    """
    last = attention.last_used(output_gradients)
    blocks = attention.blocks[: last + 1]
    relevance = _relevance(blocks, attention_gradients)
    reader, patches = blocks[-1].query_sequence, attention.patch_sequence
    if (reader, patches) not in relevance:
        raise MethodError(
            f"no chain of attentions leads from the patches to what {attention.model} reads out, as it joins or merges tokens on "
            "the way; use rollout, legrad, grad_cam or layer_cam"
        )
    of_patches = relevance[reader, patches]
    if reader == patches:
        of_patches = of_patches - torch.eye(of_patches.shape[-1]).to(of_patches)
    return attention.maps((attention.readout(output_gradients[last])[:, None] @ of_patches)[:, 0])


@method(
    paper="Bousselham et al., ICCV 2025, arXiv:2404.03214, the definition of LeGrad",
    use="the choice for vision transformers: sharp, and cheap",
)
def legrad(attention: Attention, own_gradients: Sequence[Tensor]) -> RawMaps:
    """Sum how far more attention to each patch would raise the score of each block: the choice for vision transformers.

    ``sum_l mean_h,q relu(ds_l/dP_l)`` over the blocks l of the patches' sequence, the mean over heads and queries. s_l is the
    score that the head computes from the tokens of block l instead of the last block's. (For CLIP the authors' code first
    averages all tokens of a block; here the head reads the same tokens as of the last block, the class token or the mean.)
    Where an attention with queries of its own pools the tokens, as in SigLIP, P_l is that attention over the tokens of block
    l, as in the paper.
    """
    return attention.maps(torch.stack([gradient.relu().mean((1, 2)) for gradient in own_gradients]).sum(0))


@method(
    paper="Zhao et al., ICML 2024, the definition of Grad-ECLIP; arXiv:2502.18816",
    use="CLIP and similar models: which patches match the text",
)
def grad_eclip(attention: Attention, output_gradients: Sequence[Tensor]) -> RawMaps:
    """Weigh the value of each patch in the last attention by the gradient at its output, with loosened attention: for CLIP.

    ``sum_c ds/do_c v_ic lambda_i`` before the paper's ReLU, which is the heatmap's step here: o is the last attention's
    output for the class token, c runs over the channels of all heads, v are the values, and ``lambda_i = minmax_i cos(q,
    k_i)`` over the patches replaces the softmax, which gives most patches nearly nothing. If several tokens are read out,
    their maps are summed. If all patches are equally similar to the query, lambda is 1.
    """
    last = attention.last_used(output_gradients, keys=attention.patch_sequence)
    block, gradients = attention.blocks[last], output_gradients[last]
    if block.queries is None or block.keys is None:
        raise MethodError(
            f"the scores in the last attention of {attention.model} are no plain product of queries and keys, which grad_eclip "
            "compares; use legrad or gae"
        )
    queries, keys = (F.normalize(vectors.transpose(1, 2).flatten(2), dim=2) for vectors in (block.queries, block.keys))
    similarity = (queries @ keys.transpose(1, 2))[:, :, attention.patches]
    low, high = similarity.amin(2, keepdim=True), similarity.amax(2, keepdim=True)
    loosened = torch.where(high > low, rescale(similarity, low, high), 1)
    contributions = (gradients @ block.values.transpose(2, 3)).sum(1)[:, :, attention.patches]
    return (contributions * loosened).sum(1).reshape(len(similarity), *attention.grid)


@method(
    paper="Xie et al., IJCAI 2023, arXiv:2211.03064, the definition of ViT-CX",
    use="transformers, without gradients: about a hundred passes",
    passes="2 per cluster of channels",
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
    """Average masks made of clusters of channels, each weighted by its effect on the score: a Score-CAM for transformers.

    Each channel is rescaled to [0, 1]; similar channels are clustered, such that no two in a cluster are further apart than
    the cosine ``distance``, and each cluster's sum is rescaled again: the masks M_i. With Z_i normal noise with standard
    deviation ``noise``, drawn from ``seed``, and U enlarging, ``s_i = s(x U(M_i) + Z_i (1 - U(M_i))) - s(x + Z_i (1 -
    U(M_i))) + s(x)``, which subtracts the effect of the noise alone. The map is ``1/N sum_i s_i M_i / sum_j M_j``, so that
    cells in many masks do not gain. What all s_i have in common, s(x) included, is the same everywhere; only differences
    within the map matter, and its least value is subtracted. A cell in no mask gets 0.

    The authors enlarge first, and score by the class probability; here the map stays at the layer's resolution and the score is
    the target's. They use the first normalisation of the last block as the layer.
    """
    if not 0 < distance <= 1 or noise < 0:
        raise MethodError(
            f"vit_cx takes a distance in (0, 1] and noise of at least 0, not {distance:g} and {noise:g}; try 0.1 for both"
        )
    masks = _cluster_masks(min_max(activations)[0], distance)
    seeds: list[int] = torch.randint(2**62, (len(masks),), generator=torch.Generator().manual_seed(seed)).tolist()
    shape = images.shape[1:]

    def make_batch(part: slice) -> Tensor:
        items = range(2 * len(masks))[part]  # the images under the masks, then those with noise alone
        numbers = [item % len(masks) for item in items]
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seeds[number])) for number in numbers]
        visible = resize(masks[numbers, None], shape[1:])
        are_masked = torch.tensor([item < len(masks) for item in items], device=images.device)
        factors = torch.where(are_masked.reshape(-1, *[1] * len(shape)), visible, 1)
        return images * factors + noise * torch.stack(draws).to(images) * (1 - visible)

    scores: Tensor = rescore_images(2 * len(masks), make_batch)
    effects = (scores[: len(masks)] - scores[len(masks) :]).to(masks.dtype)
    coverage = masks.sum(0)
    average = torch.tensordot(effects, masks, 1) / coverage.masked_fill(coverage == 0, 1) / len(masks)
    return torch.where(coverage > 0, average - average[coverage > 0].min(), 0)[None]


def _cluster_masks(maps: Tensor, distance: float) -> Tensor:
    """Cluster similar maps into masks, count x grid, leaving flat maps out. Raises MethodError for fewer than two masks."""
    maps = maps[maps.flatten(1).any(1)]
    if not len(maps):
        raise MethodError("every channel of the layer is flat, so that vit_cx finds no mask in it; name another layer")
    flat = F.normalize(maps.flatten(1), dim=1)
    sums = torch.stack([maps[group].sum(0) for group in clusters(1 - flat @ flat.T, distance)])
    if len(sums) == 1:  # the map would be the same everywhere
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
