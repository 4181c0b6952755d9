"""The attention methods against their papers' equations, on transformers whose attention is written out."""

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
import papers.attention as papers_of
from glowmap.errors import MethodError
from glowmap.methods import METHODS
from papers.twins import TWINS
from tiny_models.convolutional import Classifier, images
from tiny_models.transformer import Attend, Couple, Detector, Transformer, made, pictures

HOW = ["eager", "fused", "einsum"]
OF_ATTENTION = ["rollout", "gae", "legrad", "grad_eclip"]
TARGETS = torch.tensor([1, 2])


def attentions(model, picture, score, run=None):
    """List what every Attend of a model computed for one picture, with the gradients by its weights and its outputs.

    The weights are worked out anew from queries and keys, and given back to the model in the place of its own attention.
    """
    found = []

    def mixing(module, asking, asked=None):
        asked = asking if asked is None else asked
        q, k, v = (module.split(part) for part in (module.q(asking), module.k(asked), module.v(asked)))
        scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) / q.shape[-1] ** 0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed = (weights[..., None] * v[..., None, :, :]).sum(-2)
        found.append((module, weights, mixed, q, k, v))
        return module.out(mixed.transpose(1, 2).flatten(2))

    own = Attend.forward
    Attend.forward = mixing
    try:
        answer = (run or model)(picture[None])
    finally:
        Attend.forward = own
    gradients = torch.autograd.grad(score(answer), [tensor for one in found for tensor in one[1:3]], allow_unused=True)
    rows = []
    for number, (module, *tensors) in enumerate(found):
        mine = [
            torch.zeros_like(tensors[i]) if gradients[2 * number + i] is None else gradients[2 * number + i]
            for i in (0, 1)
        ]
        rows.append([module, *(tensor[0].detach().numpy() for tensor in (*tensors, *mine))])
    return rows


def reading(output_gradient):
    """Say how much of each token is read, by the length of the gradient at its output."""
    H, N, C = output_gradient.shape
    lengths = [sum(output_gradient[h, i, c] ** 2 for h in range(H) for c in range(C)) ** 0.5 for i in range(N)]
    return [length / sum(lengths) for length in lengths]


def joined(heads):
    """Put the heads' channels side by side: tokens x channels."""
    return np.concatenate(list(heads), axis=1)


def twin_map(name, model, picture, category):
    rows = attentions(model, picture, lambda answer: answer[0, category])
    P, G = [row[1] for row in rows], [row[6] for row in rows]
    read = reading(rows[-1][7])
    if name == "rollout":
        return TWINS[name](P, read)
    if name == "gae":
        return TWINS[name](P, G, read)
    if name == "legrad":
        return TWINS[name]([own_gradient(model, picture, category, block) for block in range(len(rows))])
    _, _, _, q, k, v, _, w = rows[-1]
    before = model.patches.before.shape[1]
    tokens = range(before, v.shape[1])
    used = [i for i in range(v.shape[1]) if np.abs(w[:, i]).max() > 0]
    return np.concatenate(
        [
            np.zeros(before),
            TWINS[name](joined(w)[used], joined(q)[used], joined(k), joined(v), list(tokens)),
        ]
    )


def own_gradient(model, picture, category, block):
    """Score the tokens of one block by the head, and differentiate by that block's own attention."""

    def run(one):
        tokens = model.patches(one)
        for number in range(block + 1):
            tokens = model.blocks[number](tokens)
        tokens = model.norm(tokens)
        return model.head(tokens[:, 0] if model.read == "class" else tokens.mean(1))

    return attentions(model, picture, lambda answer: answer[0, category], run)[block][6]


@pytest.mark.parametrize("name", OF_ATTENTION)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("read", "before"), [("class", 1), ("class", 3), ("mean", 1), ("mean", 0)])
def test_a_vision_transformer(name, how, read, before):
    model, batch = made(Transformer, how, read, before), pictures()
    found = glowmap.explain(model, batch, target=TARGETS, method=name)
    assert found.layer == "attention"
    for number, picture in enumerate(batch):
        wanted = twin_map(name, model, picture, int(TARGETS[number]))[before:].reshape(3, 4)
        np.testing.assert_allclose(found.raw[number], wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.parametrize("name", OF_ATTENTION)
@pytest.mark.parametrize("grid", [(7,), (2, 3, 2)])
def test_signals_and_volumes(name, grid):
    model, batch = made(Transformer, grid=grid), pictures(*(4 * cells for cells in grid))
    found = glowmap.explain(model, batch, target=TARGETS, method=name).raw
    for number, picture in enumerate(batch):
        wanted = twin_map(name, model, picture, int(TARGETS[number]))[1:].reshape(grid)
        np.testing.assert_allclose(found[number], wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())


def of_query(query, category):
    def score(answer):
        return answer[:, query, category]

    return score


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("queries", [5, 12])  # 12 are as many as there are patches
def test_gae_of_a_detector(how, queries):
    model, batch = made(Detector, how, queries), pictures()
    found = glowmap.explain(model, batch, target=of_query(3, 1), method="gae").raw
    for number, picture in enumerate(batch):
        rows = attentions(model, picture, lambda answer: answer[0, 3, 1])
        encoder = [(row[1], row[6]) for row in rows[:2]]
        decoder = [(kind, row[1], row[6]) for kind, row in zip(["self", "cross"] * 2, rows[2:], strict=True)]
        wanted = papers_of.chefer_encoder_and_decoder(encoder, decoder, reading(rows[-1][7])).reshape(3, 4)
        assert reading(rows[-1][7]) == pytest.approx([float(i == 3) for i in range(queries)])
        np.testing.assert_allclose(found[number], wanted, rtol=1e-9, atol=1e-12 * wanted.max())


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("words", [5, 12])
def test_gae_of_words_and_a_picture(how, at_once, words):
    model, batch = made(Couple, at_once, words, how), pictures()
    found = glowmap.explain(model, batch, target=2, method="gae").raw
    for number, picture in enumerate(batch):
        rows = attentions(model, picture, lambda answer: answer[0, 2])
        named = {row[0]: row for row in rows}

        def step(module, of, over, named=named):
            return of, over, named[module][1], named[module][6]

        there, back = step(model.to_image, "text", "image"), step(model.to_text, "image", "text")
        layers = [
            [[step(model.text.attend, "text", "text")], [step(model.image.attend, "image", "image")]],
            [[there, back]] if at_once else [[there], [back]],
            [[step(model.text2.attend, "text", "text")], [step(model.image2.attend, "image", "image")]],
            [[step(model.last, "text", "image")]],
        ]
        wanted = papers_of.chefer_co_attention(layers, reading(named[model.last][7])).reshape(3, 4)
        np.testing.assert_allclose(found[number], wanted, rtol=1e-9, atol=1e-12 * wanted.max())


class Pooler(Transformer):
    """All patches are read through one attention whose query is learned."""

    def __init__(self, how="eager"):
        super().__init__(how, before=0)
        self.probe, self.pool = nn.Parameter(torch.randn(1, 1, 8)), Attend(how=how)

    def pooled(self, tokens):
        return self.head(self.pool(self.probe.expand(len(tokens), -1, -1), self.norm(tokens))[:, 0])

    def forward(self, images):
        tokens = self.patches(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.pooled(tokens)


@pytest.mark.parametrize("how", HOW)
def test_legrad_of_an_attention_pooler(how):
    """The paper's rule for SigLIP: the pooler's attention over the tokens of every block."""
    model, batch = made(Pooler, how), pictures()
    found = glowmap.explain(model, batch, target=TARGETS, method="legrad").raw
    for number, picture in enumerate(batch):
        own = []
        for depth in (1, 2, 3):

            def run(one, depth=depth):
                tokens = model.patches(one)
                for block in model.blocks[:depth]:
                    tokens = block(tokens)
                return model.pooled(tokens)

            own.append(attentions(model, picture, lambda a, n=number: a[0, TARGETS[n]], run)[-1][6])
        wanted = TWINS["legrad"](own).reshape(3, 4)
        np.testing.assert_allclose(found[number], wanted, rtol=1e-9, atol=1e-12 * wanted.max())


def test_an_attention_pooler_is_followed_by_the_cross_rule_and_by_grad_eclip():
    model, batch = made(Pooler), pictures()
    gae = glowmap.explain(model, batch, target=TARGETS, method="gae").raw
    grad_eclip = glowmap.explain(model, batch, target=TARGETS, method="grad_eclip").raw
    for number, picture in enumerate(batch):
        rows = attentions(model, picture, lambda answer, n=number: answer[0, TARGETS[n]])
        pairs = [(row[1], row[6]) for row in rows[:-1]]
        wanted = papers_of.chefer_encoder_and_decoder(pairs, [("cross", rows[-1][1], rows[-1][6])], [1.0])
        np.testing.assert_allclose(gae[number].flatten(), wanted, rtol=1e-9, atol=1e-12 * wanted.max())
        _, _, _, q, k, v, _, w = rows[-1]
        wanted = TWINS["grad_eclip"](joined(w), joined(q), joined(k), joined(v), list(range(12)))
        np.testing.assert_allclose(grad_eclip[number].flatten(), wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())


# -- ViT-CX ------------------------------------------------------------------------------------------------------------


def asked_of(model, layer, picture, category, seed=0, **parameters):
    """Ask the twin about one picture."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[2].detach()[0].numpy()))
    model(picture[None])
    handle.remove()
    size = picture.shape[1:]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]

    def score(x):
        return float(model(torch.tensor(x)[None])[0, category])

    def noise_of(i, count):
        seeds = torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
        return torch.randn(picture.shape, generator=torch.Generator().manual_seed(seeds[i])).double().numpy()

    def enlarge(mask):
        return nn.functional.interpolate(torch.tensor(mask)[None, None], size, mode=mode)[0, 0].numpy()

    with torch.no_grad():
        return TWINS["vit_cx"](kept[0], picture.numpy(), score, noise_of, enlarge, **parameters)


class Net(nn.Module):
    """A convolution of many channels, some alike, and a head that bends."""

    def __init__(self, axes):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes](3, 9, 3, 2, 1)
        conv.weight.data[4:] = conv.weight.data[:5] + 0.03 * torch.randn_like(conv.weight.data[:5])
        self.layer, self.head = conv, nn.Linear(9, 3)

    def forward(self, images):
        return self.head(torch.tanh(3 * self.layer(images)).flatten(2).mean(2))


@pytest.mark.parametrize("sides", [(16,), (8, 12), (4, 6, 8)])
@pytest.mark.parametrize(("distance", "noise", "seed"), [(0.1, 0.1, 0), (0.03, 0.5, 7), (0.3, 0.0, 0)])
def test_vit_cx(sides, distance, noise, seed):
    model, batch = made(Net, len(sides)), pictures(*sides)
    method = METHODS["vit_cx"].with_parameters(distance=distance, noise=noise, seed=seed)
    found = glowmap.explain(model, batch, target=1, layer="layer", method=method).raw
    for number, picture in enumerate(batch):
        wanted, masks = asked_of(model, "layer", picture, 1, seed, delta=distance, sigma=noise)
        np.testing.assert_allclose(found[number], wanted, rtol=1e-7, atol=1e-9 * wanted.max())
        assert 1 < masks < 9
        assert wanted.max() > 0


def test_vit_cx_looks_at_tokens():
    model, batch = made(Transformer), pictures()
    found = glowmap.explain(model, batch, target=1, layer="blocks.2.norm1", method="vit_cx").raw
    assert found.shape == (2, 3, 4)
    assert (found.flatten(1).min(1).values == 0).all()
    assert (found.flatten(1).max(1).values > 0).all()


def test_vit_cx_counts_no_flat_channel_and_no_cell_without_a_mask():
    model = Classifier().double().eval()
    model.features = nn.Sequential(nn.Identity())
    model.head = nn.Linear(3, 4).double()
    batch = torch.zeros(1, 3, 4, 4).double()
    batch[0, 0, 0, 0], batch[0, 1, 1, 1], batch[0, 2] = 2.0, 3.0, 5.0  # the third is flat
    model.head.weight.data[1] = torch.tensor([1.0, -1.0, 0.0])
    method = METHODS["vit_cx"].with_parameters(noise=0.0)
    found = glowmap.explain(model, batch, target=1, layer="features.0", method=method).raw[0]
    # the mask of each spot leaves that spot alone: 2/16 for the first, -3/16 for the second, beside what the image says
    assert float(found[0, 0] - found[1, 1]) == pytest.approx((2 / 16 + 3 / 16) / 2)
    assert not found[2:].any()


@pytest.mark.parametrize("parameters", [{"distance": 0.0}, {"distance": 1.5}, {"noise": -0.1}])
def test_vit_cx_refuses_knobs_that_are_none(parameters):
    with pytest.raises(MethodError, match=r"vit_cx takes a distance in \(0, 1\] and noise of at least 0, not"):
        glowmap.explain(
            Classifier().eval(),
            images(),
            target=1,
            layer="features.4",
            method=METHODS["vit_cx"].with_parameters(**parameters),
        )


def test_vit_cx_refuses_a_single_mask_which_would_show_nothing():
    with pytest.raises(MethodError, match="all channels of the layer are within a distance of 1 of each other"):
        glowmap.explain(
            made(Net, 2),
            pictures(8, 12),
            target=1,
            layer="layer",
            method=METHODS["vit_cx"].with_parameters(distance=1.0),
        )


def test_vit_cx_refuses_a_layer_without_a_mask():
    model = Classifier().eval()
    with pytest.raises(MethodError, match="every channel of the layer is flat"):
        glowmap.explain(model, torch.zeros(1, 3, 16, 16), target=1, layer="features.1", method="vit_cx")


def test_clusters_by_hand():
    """1 and 2 are near, 3 is near to 2 alone: by complete linkage it stays out, though single linkage would take it in."""
    from glowmap.methods.attention import clusters

    distances = torch.tensor([[0.0, 0.1, 0.5, 0.9], [0.1, 0.0, 0.2, 0.9], [0.5, 0.2, 0.0, 0.3], [0.9, 0.9, 0.3, 0.0]])
    assert clusters(distances, 0.4) == [[0, 1], [2, 3]]
    assert clusters(distances, 0.3) == [[0, 1], [2], [3]]  # 0.3 is not below 0.3
    assert clusters(distances, 1.0) == [[0, 1, 2, 3]]
    assert clusters(distances, 0.05) == [[0], [1], [2], [3]]
