"""The layer finds itself: by evidence, on tiny models whose right layer is known."""

import pytest
import torch
from torch import nn

import glowmap
from glowmap.errors import LayerError, TargetError
from glowmap.layers import Layout
from tiny_models.convolutional import Classifier, FlattenClassifier, Segmenter, images


class Attention(nn.Module):
    """Self-attention with queries, keys and values of their own, so that each is only a part of the way."""

    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens):
        weights = (self.query(tokens) @ self.key(tokens).transpose(1, 2) / tokens.shape[2] ** 0.5).softmax(2)
        return self.out(weights @ self.value(tokens))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens):
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class Transformer(nn.Module):
    """A vision transformer: ``before`` tokens before the patches; the first is read, or the mean of all where there is none."""

    def __init__(self, before=1, width=12, depth=3, side=4, scramble=None):
        super().__init__()
        self.embed = nn.Conv2d(3, width, side, side)
        self.extra = nn.Parameter(torch.randn(1, before, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)
        self.scramble = scramble  # (which block, how its patches are put in another order)

    def tokens(self, images):
        patches = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat([self.extra.expand(len(images), -1, -1), patches], 1)

    def forward(self, images):
        tokens = self.tokens(images)
        for number, block in enumerate(self.blocks):
            if self.scramble and self.scramble[0] == number:
                tokens = self.scramble[1](tokens)
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return self.head(tokens[:, 0] if self.extra.shape[1] else tokens.mean(1))


def found(model, batch=None, target=None):
    return glowmap.Explainer(model.eval()).find(images(1, 24, 32) if batch is None else batch, target=target)


def test_a_convolutional_classifier_is_explained_at_its_last_maps():
    model, batch = Classifier().eval(), images()
    choice = found(model, batch)
    assert (choice.name, choice.layout, choice.coverage) == ("features", Layout("channels first", (4, 5)), 1.0)
    assert "all evidence goes through" in choice.reason
    one, named = (glowmap.explain(model, batch, target=2, layer=layer) for layer in (None, "features"))
    assert one.layer == "features"
    assert torch.equal(one.raw, named.raw)
    assert [each.name for each in choice.runners_up] == ["features.2"]  # the last of the finer grid


def test_pooling_is_no_layer_to_look_at_and_nor_are_the_class_scores():
    convolutions = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 9, 3, 2, 1), nn.ReLU())
    pooled = nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(36, 5))
    assert found(pooled).name == "3"
    scores = nn.Sequential(*convolutions, nn.Conv2d(9, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert found(scores).name == "3"
    same = nn.Sequential(
        *convolutions, nn.Dropout(), nn.Identity(), nn.AdaptiveAvgPool2d((6, 8)), nn.Flatten(), nn.Linear(432, 5)
    )
    assert found(same).name == "3"


def test_pooling_after_a_function_is_no_layer_either():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2), nn.Linear(8, 5)

        def forward(self, batch):
            return self.head(self.pool(self.conv(batch).relu()).mean((2, 3)))

    assert found(Net()).name == "conv"


@pytest.mark.parametrize("before", [1, 2, 5])
def test_where_a_class_token_is_read_the_patches_end_at_the_last_blocks_first_norm(before):
    model, batch = Transformer(before).eval(), images(2, 24, 32)
    choice = found(model, batch)
    assert (choice.name, choice.layout) == ("blocks.2.norm1", Layout("tokens", (6, 8), before))
    after = {one.name: one.coverage for one in choice.runners_up}
    assert after["norm"] == 0  # where others return a blank map
    assert after["blocks.1"] == 1
    one = glowmap.explain(model, batch, target=3)
    patches = torch.autograd.grad(model(batch)[:, 3].sum(), model.extra)  # the model is as it was: still differentiable
    assert patches[0].any()
    assert one.grid == (6, 8)
    named = glowmap.explain(model, batch, target=3, layer="blocks.2.norm1")
    assert torch.equal(one.raw, named.raw)


def test_where_the_mean_is_read_all_goes_through_the_final_norm():
    choice = found(Transformer(0))
    assert (choice.name, choice.layout) == ("norm", Layout("tokens", (6, 8), 0))


def test_tokens_in_another_order_are_not_taken_for_a_grid():
    """From the block on that puts them in another order, no layer can be laid out; the last before it can."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))

    def shuffled(tokens):
        return torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], 1)

    def patch_activation(tokens):  # column by column
        return torch.cat([tokens[:, :1], tokens[:, 1:].unflatten(1, (6, 8)).transpose(1, 2).flatten(1, 2)], 1)

    for scramble in (shuffled, patch_activation):
        choice = found(Transformer(scramble=(2, scramble), width=24))
        assert choice.name == "blocks.1"
        assert choice.layout == Layout("tokens", (6, 8), 1)


class Mixed(Transformer):
    """Seven words stand before the patches and two behind them, in one sequence."""

    def tokens(self, images):
        words = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(2)).expand(len(images), -1, -1)
        return torch.cat([words[:, :7], super().tokens(images), words[:, 7:]], 1)


def test_patches_among_words_are_found_by_where_they_look():
    model = Mixed(width=24, depth=8).eval()
    choice = found(model)
    assert choice.layout == Layout("tokens", (6, 8), 8, interleaved=True)
    assert choice.name == "blocks.7.norm1"
    batch = images(2, 24, 32)
    grid = glowmap.explain(model, batch, target=1).raw
    recorded = {}
    model.get_submodule(choice.name).register_forward_hook(lambda _m, _i, output: recorded.update(maps=output))
    (gradient,) = torch.autograd.grad(model(batch)[:, 1].sum(), recorded["maps"])
    maps, slope = (one[:, 8:56].transpose(1, 2).unflatten(2, (6, 8)) for one in (recorded["maps"], gradient))
    assert torch.allclose(grid, (slope.mean((2, 3), keepdim=True) * maps).sum(1), atol=1e-6)


def test_a_named_layer_of_patches_among_words_is_read_rightly_too():
    """Seven words before a class token and two behind: as many tokens as nine before the patches would be, or eleven."""
    model, batch = Mixed(width=24, depth=4).eval(), images(2, 24, 32)
    one = glowmap.explain(model, batch, target=1, layer="blocks.1")
    recorded = {}
    model.blocks[1].register_forward_hook(lambda _m, _i, output: recorded.update(maps=output))
    (gradient,) = torch.autograd.grad(model(batch)[:, 1].sum(), recorded["maps"])
    maps, slope = (each[:, 8:56].transpose(1, 2).unflatten(2, (6, 8)) for each in (recorded["maps"], gradient))
    assert torch.allclose(one.raw, (slope.mean((2, 3), keepdim=True) * maps).sum(1), atol=1e-6)
    assert one.cautions == ()


def test_a_named_layer_whose_tokens_lie_otherwise_says_that_nothing_is_proven():
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    scramble = (1, lambda tokens: torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], 1))
    model = Transformer(scramble=scramble, width=24).eval()
    (caution,) = glowmap.explain(model, images(1, 24, 32), target=1, layer="blocks.1").cautions
    assert caution.startswith(
        "the output of layer 'blocks.1' was read as tokens, 6 x 8 after 1 other, which could not be proven"
    )
    assert glowmap.explain(model, images(1, 24, 32), target=1, layer="blocks.0").cautions == ()


def test_a_named_module_that_hands_its_tokens_through_is_proven_as_they_are():
    class Through(Transformer):
        def __init__(self):
            super().__init__(width=24)
            self.blocks = nn.Sequential(Block(24), nn.Identity(), Block(24))

    assert glowmap.explain(Through().eval(), images(1, 24, 32), target=1, layer="blocks.1").cautions == ()


class TokensFirst(Transformer):
    """As some libraries have it: the batch is the second axis within the blocks."""

    def __init__(self):
        super().__init__(0)
        self.outer = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12), nn.LayerNorm(12))

    def forward(self, images):
        return self.head(self.outer(self.tokens(images).transpose(0, 1)).mean(0))


class ChannelTokens(nn.Module):
    """Patches as the last axis, channels before it."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 9, 4, 4), nn.Conv1d(9, 11, 1), nn.Linear(11, 5)

    def forward(self, images):
        return self.head(self.mix(self.embed(images).flatten(2)).mean(2))


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.norm(self.embed(images).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.mark.parametrize(
    ("model", "name", "kind"),
    [
        (TokensFirst, "outer", "tokens first"),
        (ChannelTokens, "mix", "channel tokens"),
        (ChannelsLast, "norm", "channels last"),
    ],
)
def test_other_orders_of_the_axes(model, name, kind):
    made, batch = model().eval(), images(2, 24, 32)
    choice = found(made, batch)
    assert (choice.name, choice.layout) == (name, Layout(kind, (6, 8), 0))
    recorded = {}
    made.get_submodule(name).register_forward_hook(lambda _m, _i, output: recorded.update(maps=output))
    (slope,) = torch.autograd.grad(made(batch)[:, 1].sum(), recorded["maps"])
    orders = {"tokens first": (1, 2, 0), "channel tokens": (0, 1, 2), "channels last": (0, 3, 1, 2)}
    maps, slope = (one.permute(orders[kind]).reshape(2, -1, 6, 8) for one in (recorded["maps"], slope))
    expected = (slope.mean((2, 3), keepdim=True) * maps).sum(1)
    assert torch.allclose(glowmap.explain(made, batch, target=1).raw, expected, atol=1e-6)


class Branches(nn.Module):
    """Two ways of unlike strides that meet in the head: nothing but the stem carries all."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.fine = nn.Sequential(*(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(4)))
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), *(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(4)))
        self.head = nn.Linear(16, 5)

    def forward(self, images):
        maps = self.stem(images).relu()
        return self.head(torch.cat([self.fine(maps).mean((2, 3)), self.coarse(maps).mean((2, 3))], 1))


def test_where_ways_meet_late_the_last_is_taken_and_said_not_to_be_all():
    choice = found(Branches())
    assert choice.name == "coarse"
    assert "some evidence goes past it" in choice.reason
    cautions = glowmap.explain(Branches().eval(), images(), target=0).cautions
    assert any(
        "no layer was named, and 'coarse' was found" in caution and "goes past it" in caution for caution in cautions
    )


class Unet(nn.Module):
    """An encoder of two steps, a bottleneck, a decoder with a skip connection."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 4, 1)

    def forward(self, images):
        fine = self.first(images)
        return self.out(torch.cat([fine, self.up(self.second(fine))], 1))


def test_dense_models_are_explained_at_the_encoders_end():
    choice = found(Unet(), images(1, 32, 32))
    assert choice.name == "second"
    assert "the encoder's end" in choice.reason
    assert found(Segmenter()).name == "encoder"


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv3d(6, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, volumes):
        return self.head(self.body(volumes).mean((2, 3, 4)))


class Signals(nn.Module):
    """An ECG net: twelve leads, three strided convolutions."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(12, 16, 7, 2, 3),
            nn.ReLU(),
            nn.Conv1d(16, 24, 7, 2, 3),
            nn.ReLU(),
            nn.Conv1d(24, 32, 7, 2, 3),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, 3)

    def forward(self, signals):
        return self.head(self.body(signals).mean(2))


class SignalTokens(nn.Module):
    """A transformer over a signal, with a class token."""

    def __init__(self, width=12):
        super().__init__()
        self.embed, self.extra = nn.Conv1d(2, width, 8, 8), nn.Parameter(torch.randn(1, 1, width))
        self.blocks, self.head = nn.Sequential(Block(width), Block(width)), nn.Linear(width, 3)

    def forward(self, signals):
        tokens = torch.cat([self.extra.expand(len(signals), -1, -1), self.embed(signals).transpose(1, 2)], 1)
        return self.head(self.blocks(tokens)[:, 0])


@pytest.mark.parametrize(
    ("model", "shape", "name", "layout"),
    [
        (Volumes, (2, 1, 8, 12, 16), "body", Layout("channels first", (2, 3, 4))),
        (Signals, (2, 12, 200), "body", Layout("channels first", (25,))),
        (SignalTokens, (2, 2, 160), "blocks.1.norm1", Layout("tokens", (20,), 1)),
    ],
)
def test_volumes_and_signals(model, shape, name, layout):
    choice = found(model(), torch.randn(shape))
    assert (choice.name, choice.layout) == (name, layout)


class Twice(nn.Module):
    """A shared tower looks at two images; the first is explained."""

    def __init__(self, swapped=False):
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 9, 3, 2, 1), nn.Tanh())
        self.head, self.swapped = nn.Linear(9, 4), swapped

    def forward(self, images, others):
        first, second = (others, images) if self.swapped else (images, others)
        a, b = self.tower(first).mean((2, 3)), self.tower(second).mean((2, 3))
        a, b = (b, a) if self.swapped else (a, b)
        return self.head(a * 2 + b)


@pytest.mark.parametrize("swapped", [False, True])
def test_of_a_layer_that_runs_twice_the_run_on_the_images_own_way_is_found(swapped):
    model = Twice(swapped).eval()
    batch, others = images(2), images(2, seed=5)
    choice = found(model, (batch, others))
    assert choice.name == ("tower#2" if swapped else "tower#1")
    one = glowmap.explain(model, (batch, others), target=1)
    maps = model.tower(batch).detach().requires_grad_()
    score = model.head(maps.mean((2, 3)) * 2 + model.tower(others).mean((2, 3)))[:, 1].sum()
    (slope,) = torch.autograd.grad(score, maps)
    assert torch.allclose(one.raw, (slope.mean((2, 3), keepdim=True) * maps.detach()).sum(1), atol=1e-6)


def counted(model):
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


def test_the_second_picture_costs_nothing_extra():
    model, batch = Transformer().eval(), images(2, 24, 32)
    runs = counted(model)
    glowmap.explain(model, batch, target=1)
    assert len(runs) == 2  # one to find the layer, one to explain it
    glowmap.explain(model, batch, target=2)
    glowmap.Explainer(model)(images(1, 24, 32, seed=3))
    assert len(runs) == 4
    glowmap.explain(model, images(1, 16, 32), target=1)  # another shape
    assert len(runs) == 6


def test_a_model_that_was_built_anew_is_looked_at_anew():
    model = Classifier().eval()
    assert found(model, images()).name == "features"
    model.body, model.features = model.features, None
    model.forward = lambda batch: model.head(model.body(batch).mean((2, 3)))
    assert found(model, images()).name == "body"


def test_an_explainer_says_what_it_chose():
    explainer = glowmap.Explainer(Classifier().eval())
    assert explainer.layer is None
    explainer(images(), target=0)
    assert str(explainer.layer).startswith("features (Sequential, 8 channels, channels first, 4 x 5): the last")
    assert "gradient at 100% of its places" in str(explainer.layer)
    assert glowmap.Explainer(Classifier(), layer=["features.0", "features.3"]).layer == "features.0, features.3"


def test_every_kind_of_question_finds_a_layer():
    model, batch = Classifier().eval(), images(3)
    asked = (
        None,
        1,
        torch.tensor([0, 1, 2]),
        lambda output: output[:, 0] - output[:, 1],
        lambda output: output[[0, 1, 2], 0],
    )
    for target in asked:
        assert glowmap.explain(model, batch, target=target).layer == "features"


def test_a_head_for_part_of_the_channels_is_looked_at_for_itself():
    """Two heads at two layers: which layer is right depends on which is asked."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 9, 3, 2, 1)
            self.early, self.late = nn.Linear(8, 2), nn.Linear(9, 2)

        def forward(self, batch):
            fine = self.first(batch).relu()
            return {"early": self.early(fine.mean((2, 3))), "late": self.late(self.second(fine).mean((2, 3)))}

    model = Heads().eval()
    assert glowmap.explain(model, images(), target=lambda output: output["early"][:, 0]).layer == "first"
    assert glowmap.explain(model, images(), target=lambda output: output["late"][:, 0]).layer == "second"


def test_no_gradient_is_said_with_its_reason_and_other_methods_still_find_a_layer():
    class Blind(Classifier):
        @torch.no_grad()
        def forward(self, batch):
            return super().forward(batch)

    model = Blind().eval()
    with pytest.raises(
        LayerError, match=r"Blind carries no gradient back to its images.*torch.no_grad\(\).*needs no gradient"
    ):
        glowmap.explain(model, images(), target=0)
    explained = glowmap.explain(model, images(), target=0, method="eigen_cam")
    assert explained.layer == "features"
    assert any("no gradient to go by" in caution for caution in explained.cautions)
    zero = Classifier().eval()
    nn.init.zeros_(zero.head.weight)
    with pytest.raises(
        LayerError, match="no gradient anywhere.*a head of zeros.*load trained weights, or name a layer"
    ):
        glowmap.explain(zero, images(), target=0)


def test_a_model_without_a_grid_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(960, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(LayerError, match="no layer was found in Sequential whose output could be read as a grid"):
        glowmap.explain(flat.eval(), images(), target=0)
    assert glowmap.explain(flat.eval(), images(), target=0, method="input_gradient").layer == "input"


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam"])
def test_what_takes_no_hooks_is_said_with_what_works(method):
    batch = images()
    traced = torch.jit.trace(Classifier().eval(), batch)
    with pytest.raises(
        LayerError, match="layers of Classifier cannot be seen, as it was scripted.*input_gradient, rise"
    ):
        glowmap.explain(traced, batch, target=0, method=method)
    assert glowmap.explain(traced, batch, target=0, method="input_gradient").raw.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_proofs_hold_in_every_precision(dtype):
    for model, name in ((Classifier(), "features"), (Transformer(), "blocks.2.norm1")):
        assert found(model.to(dtype), images(1, 24, 32).to(dtype)).name == name


def test_nothing_floating_to_find_it_by():
    class Labels(Classifier):
        def forward(self, batch):
            return super().forward(batch).argmax(1)

    with pytest.raises(TargetError, match="returns no floating tensor"):
        glowmap.Explainer(Labels().eval()).find(images())


def test_a_flattened_head_is_found_at_its_convolution():
    choice = found(FlattenClassifier(), images(1, 8, 8))
    assert (choice.name, choice.coverage) == ("conv", 1.0)


# -- what is remembered, and when it must not be ----------------------------------------------------------------------


class Sequences(Transformer):
    """A token stream of words, in which the patches stand wherever the words leave room: zeros are theirs."""

    def __init__(self):
        super().__init__(0, width=24, depth=6)
        self.words = nn.Embedding(9, 24)

    def forward(self, images, ids):
        tokens = self.words(ids)
        patches = super().tokens(images)
        rows, places = (ids == 0).nonzero(as_tuple=True)
        tokens = tokens.index_put((rows, places), patches.reshape(-1, 24))
        return self.head(self.norm(self.blocks(tokens))[:, -1])


def ids(*before):
    return torch.tensor([[1] * one + [0] * 48 + [2] * (14 - one) for one in before])


def truth(model, layer, given, start):
    recorded = {}
    hook = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: recorded.update(maps=output))
    (slope,) = torch.autograd.grad(model(**given)[:, 1].sum(), recorded.setdefault("maps", recorded.get("maps")))
    hook.remove()
    maps, slope = (one[:, start : start + 48].transpose(1, 2).unflatten(2, (6, 8)) for one in (recorded["maps"], slope))
    return (slope.mean((2, 3), keepdim=True) * maps).sum(1).detach()


@pytest.mark.parametrize("layer", [None, "blocks.2"])
def test_other_words_of_the_same_number_move_the_patches(layer):
    model, batch = Sequences().eval(), images(1, 24, 32)
    for start in (5, 12, 5):
        given = {"images": batch, "ids": ids(start)}
        found = glowmap.explain(model, given, target=1, layer=layer)
        assert torch.allclose(found.raw, truth(model, found.layer, given, start), atol=1e-6), start


@pytest.mark.parametrize("layer", [None, "blocks.2"])
def test_a_batch_whose_patches_stand_at_different_places_is_refused(layer):
    model, batch = Sequences().eval(), images(2, 24, 32)
    with pytest.raises(LayerError, match="the patches of image 1 stand elsewhere.*explain the images one by one"):
        glowmap.explain(model, {"images": batch, "ids": ids(5, 12)}, target=1, layer=layer)
    assert glowmap.explain(model, {"images": batch, "ids": ids(12, 12)}, target=1, layer=layer).grid == (6, 8)


def test_the_attention_of_such_a_batch_is_refused_too():
    model, batch = Sequences().eval(), images(2, 24, 32)
    with pytest.raises(glowmap.errors.MethodError, match="the patches of image 1 stand elsewhere.*one by one"):
        glowmap.explain(model, {"images": batch, "ids": ids(5, 12)}, target=1, method="rollout")
    both = glowmap.explain(model, {"images": batch, "ids": ids(5, 5)}, target=1, method="rollout").raw
    one = glowmap.explain(model, {"images": batch[1:], "ids": ids(5)}, target=1, method="rollout").raw
    torch.testing.assert_close(both[1:], one)


class Switch(nn.Module):
    """Two ways to one head: which is gone, an argument, an attribute or the image itself decides."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()) for _ in range(2))
        self.head, self.use = nn.Linear(8, 4), None

    def forward(self, images, way=None):
        way = way or self.use or ("first" if images.mean() > 0 else "second")
        return self.head(getattr(self, way)(images).mean((2, 3)))


def test_another_way_through_the_model_is_found_anew():
    model, batch = Switch().eval(), images(1).abs()
    assert glowmap.explain(model, batch, target=0).layer == "first"
    assert glowmap.explain(model, -batch, target=0).layer == "second"  # the image decides
    assert glowmap.explain(model, {"images": batch, "way": "second"}, target=0).layer == "second"
    assert glowmap.explain(model, {"images": batch, "way": "first"}, target=0).layer == "first"
    model.use = "second"
    assert glowmap.explain(model, batch, target=0).layer == "second"


def test_an_exchanged_module_of_the_same_name_is_looked_at_anew():
    class Last(nn.Module):  # the same shape, channels last
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)

        def forward(self, batch):
            return self.norm(self.embed(batch).permute(0, 2, 3, 1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.axes = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()), (2, 3)
            self.head = nn.Linear(8, 3)

        def forward(self, batch):
            return self.head(self.body(batch).mean(self.axes))

    model, batch = Net().eval(), images(1, 32, 32)
    assert found(model, batch).layout.kind == "channels first"
    model.body, model.axes = Last(), (1, 2)
    assert found(model, batch).layout.kind == "channels last"


def test_callables_of_one_factory_are_told_apart():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()) for _ in range(2))

        def forward(self, batch):
            return {"a": self.a(batch).mean((2, 3)), "b": self.b(batch).mean((2, 3))}

    def of(key):
        return lambda output: output[key][:, 0]

    model = Heads().eval()
    assert [glowmap.explain(model, images(), target=of(key)).layer for key in "abab"] == list("abab")


# -- what looks like places and is none -------------------------------------------------------------------------------


def test_a_token_in_the_midst_of_overlapping_patches_is_no_patch():
    """A reading that is wrong by one token looks nearly right where patches overlap."""

    class Midst(Transformer):
        def __init__(self):
            super().__init__(1, width=24)
            self.embed = nn.Sequential(nn.Conv2d(3, 12, 7, 2, 3), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1))

        def tokens(self, images):
            patches = self.embed(images).flatten(2).transpose(1, 2)
            return torch.cat([patches[:, :24], self.extra.expand(len(images), -1, -1), patches[:, 24:]], 1)

        def forward(self, images):
            return self.head(self.norm(self.blocks(self.tokens(images))[:, 24]))

    choice = found(Midst())
    assert choice.layout.kind == "channels first"  # the stem, as nothing after it is in rows and columns
    assert choice.name == "embed"


@pytest.mark.parametrize(
    "change",
    [lambda x: x[..., :48, :48], lambda x: x.flip(-1), lambda x: x.rot90(1, (2, 3)), lambda x: x[..., 16:-16, 16:-16]],
    ids=["cut", "mirrored", "turned", "centre"],
)
def test_a_picture_that_is_changed_inside_the_model_is_said_to_be(change):
    class Inside(Classifier):
        def forward(self, batch):
            return super().forward(change(batch))

    batch = images(1, 96, 96)
    assert glowmap.explain(Classifier().eval(), batch, target=0).cautions == ()
    cautions = glowmap.explain(Inside().eval(), batch, target=0).cautions
    assert any(
        "its cells look elsewhere in the picture: does the model crop, flip or warp its input?" in caution
        for caution in cautions
    )


def test_tokens_in_another_order_before_a_head_of_means_are_not_drawn():
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    choice = found(Transformer(0, scramble=(0, lambda tokens: tokens[:, order]), width=24))
    assert choice.name == "embed"
    assert not choice.certain


def test_a_head_that_reads_a_few_cells_is_explained_with_a_word_of_doubt():
    class Corner(Classifier):
        def forward(self, batch):
            return self.head(self.features(batch)[..., :2, :2].mean((2, 3)))

    explained = glowmap.explain(Corner().eval(), images(1, 40, 40), target=0)
    assert explained.layer == "features"
    assert any("through 4% of its places alone" in caution for caution in explained.cautions)


def test_maps_of_two_axes_that_are_no_classes_at_places_are_not_read_as_such():
    class Depth(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 1, 3, 1, 1))

        def forward(self, batch):
            return self.body(batch)[:, 0]

    with pytest.raises(
        TargetError,
        match=r"shape \(1, 8, 10\), which is neither images x classes nor images x classes x 2 spatial axes",
    ):
        glowmap.explain(Depth().eval(), images(1))


def test_frames_before_colours_are_refused():
    with pytest.raises(glowmap.errors.InputError, match="frames before its colours.*clips.transpose"):
        glowmap.explain(Volumes().eval(), torch.randn(1, 8, 3, 32, 32), target=0)


def test_a_detector_that_finds_nothing_says_so():
    class Detector(Classifier):
        def forward(self, batch):
            scores = super().forward(batch).softmax(1).flatten()
            return [{"boxes": torch.zeros(0, 4), "scores": scores[scores > 2]}]

    with pytest.raises(TargetError, match="Detector found nothing in the picture.*lower the model's score threshold"):
        glowmap.Explainer(Detector().eval()).find(images(1))


def test_a_choice_is_a_layer_too():
    model = Classifier().eval()
    explainer = glowmap.Explainer(model)
    choice = explainer.find(images())
    assert explainer.layer is choice
    assert glowmap.explain(model, images(), target=0, layer=choice.runners_up[0]).layer == choice.runners_up[0].name
