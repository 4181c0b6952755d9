import copy
import threading
import warnings

import pytest
import torch
from torch import nn

import glowmap
from closeness import assert_equal_up_to_rounding
from glowmap.errors import LayerError
from glowmap.layers import find_layers
from tiny_models.convolutional import Classifier, FlattenClassifier, images


def test_by_name_by_module_and_several_in_the_order_asked_for():
    model = Classifier().eval()
    by_name = glowmap.explain(model, images(), target=0, layer="features.3")
    by_module = glowmap.explain(model, images(), target=0, layer=model.features[3])
    assert by_module.layer == "features.3"
    assert torch.equal(by_name.raw, by_module.raw)
    several = glowmap.explain(model, images(), target=0, layer=[model.features[4], "features.0"])
    assert [one.layer for one in several] == ["features.4", "features.0"]
    assert len(glowmap.explain(model, images(), target=0, layer=["features.3"])) == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("feature.3", "no layer 'feature.3' in Classifier; near names: features.3"),
        ("3", "near names: features.3"),
        ("", "no layer ''"),
        (nn.ReLU(), "the given ReLU is no part of this Classifier"),
        ([], "an empty list of layers; give at least one, or None for the one that is found"),
        ("features.3#", "names no run of a layer; write features.3#1"),
        ("features.3#0", "names no run of a layer"),
        ("head", r"layer 'head' \(2 x 4\) has no spatial axes"),
    ],
)
def test_layers_that_cannot_be_explained(layer, message):
    with pytest.raises(LayerError, match=message):
        glowmap.explain(Classifier().eval(), images(), target=0, layer=layer)


@pytest.mark.parametrize("name", ["_orig_mod.features.3", "module.features.3", "_orig_mod.module.features.3"])
def test_names_inside_wrappers_are_understood(name):
    assert list(find_layers(Classifier(), name)) == ["features.3"]
    assert list(find_layers(nn.DataParallel(Classifier()), "module.features.3")) == ["module.features.3"]


def test_what_is_neither_a_name_nor_a_module():
    with pytest.raises(LayerError, match="a dotted name or a module, not 7"):
        find_layers(Classifier(), 7)


class Odd(Classifier):
    """A classifier with modules around which something odd happens; ``way`` says which."""

    def __init__(self, way):
        super().__init__()
        self.way, self.odd, self.inner = way, nn.Identity(), nn.Identity()

    def forward(self, images):
        maps = self.features(images)
        match self.way:
            case "never runs":
                pass
            case "tokens":
                tokens = maps.flatten(2).transpose(1, 2)
                maps = self.odd(tokens[:, :13]).mean(1)[:, :, None, None]
            case "one cell":
                maps = self.odd(maps.mean((2, 3), keepdim=True))
            case "windows":
                maps = self.odd(maps.flatten(0, 1)[:, None]).reshape(maps.shape)
            case "detached after":
                maps = self.odd(maps).detach()
            case "not used":
                self.odd(maps * 2)
            case "under no_grad":
                with torch.no_grad():
                    maps = self.inner(self.odd(maps)) * 1
            case "under inference_mode":
                with torch.inference_mode():
                    maps = self.odd(maps * 1)
                maps = maps * 1
            case "overwritten":
                kept = self.odd(maps)
                maps.mul_(0.5)
                maps = maps + kept
            case "twice":
                maps = self.odd(self.odd(maps) * 2)
            case "two maps":
                maps = sum(self.odd((maps, maps * 2)))
        return self.head(maps.mean((2, 3)))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("never runs", "layer 'odd' did not run in this forward pass"),
        (
            "tokens",
            r"'odd' \(2 x 13 x 8\) does not have the 2 spatial axes of the input \(2 x 3 x 16 x 20\), nor as many tokens",
        ),
        ("one cell", r"'odd' \(2 x 8 x 1 x 1\) has no spatial axes left"),
        ("windows", r"'odd' \(16 x 1 x 4 x 5\) has 16 rows for 2 images"),
        ("not used", "the score does not depend on layer 'odd'; either what the layer computes is not used"),
        ("under no_grad", r"'odd'; the model runs it under torch.no_grad\(\)"),
        ("under inference_mode", r"runs layer 'odd' under torch.inference_mode\(\)"),
        ("overwritten", "output of layer 'odd' is overwritten in place later"),
        ("two maps", r"layer 'odd' returns 2 maps \(2 x 8 x 4 x 5, 2 x 8 x 4 x 5\)"),
    ],
)
def test_odd_layers_are_named(way, message):
    layers = ["features.0", "odd"] if way == "not used" else "odd"
    with pytest.raises(glowmap.errors.GlowmapError, match=message):
        glowmap.explain(Odd(way).eval(), images(), target=0, layer=layers)


def test_a_head_that_is_cut_off():
    with pytest.raises(glowmap.errors.TargetError, match="carries no gradient to layer 'odd'; either"):
        glowmap.explain(Odd("detached after").eval(), images(), target=0, layer="odd")


def test_the_end_of_a_backbone_under_no_grad_can_be_explained():
    """The graph begins at the layer, so a frozen backbone that runs under no_grad is no obstacle at its last module."""

    class Frozen(Classifier):
        def forward(self, images):
            with torch.no_grad():
                maps = self.features(images)
            return self.head(maps.mean((2, 3)))

    frozen, free = Frozen().eval(), Classifier().eval()
    free.load_state_dict(frozen.state_dict())
    found = glowmap.explain(frozen, images(), target=0, layer="features")
    assert_equal_up_to_rounding(found.raw, glowmap.explain(free, images(), target=0, layer="features").raw)


def test_a_layer_that_runs_twice_is_explained_at_its_last_run_and_said():
    model = Odd("twice").eval()
    found = glowmap.explain(model, images(), target=0, layer="odd")
    assert "layer 'odd' ran 2 times; its last run is explained ('odd#1' names the first)" in found.cautions
    doubled = glowmap.explain(model, images(), target=0, layer="features")
    torch.testing.assert_close(found.raw, doubled.raw)  # twice the activations, half the gradient


@pytest.mark.parametrize(
    "wrap", [lambda m: (m, None), lambda m: [m], lambda m: {"out": m, "n": 1}, lambda m: ((m,), "x")]
)
def test_one_map_in_a_structure_is_found(wrap):
    class Wrapping(nn.Module):
        def forward(self, maps):
            return wrap(maps)

    class Structured(Classifier):
        def __init__(self):
            super().__init__()
            self.wrapping = Wrapping()

        def forward(self, images):
            (maps,) = glowmap_tensors(self.wrapping(self.features(images)))
            return self.head(maps.mean((2, 3)))

    def glowmap_tensors(value):
        if isinstance(value, torch.Tensor):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return [tensor for part in parts for tensor in glowmap_tensors(part)]

    model = Structured().eval()
    found = glowmap.explain(model, images(), target=0, layer="wrapping")
    assert torch.equal(found.raw, glowmap.explain(model, images(), target=0, layer="features").raw)
    assert found.raw.any()


def test_a_layer_whose_gradient_is_zero_is_no_silent_zero_map():
    model = FlattenClassifier().eval()
    nn.init.zeros_(model.head.weight)
    found = glowmap.explain(model, images(1, 8, 8), target=0, layer="conv")
    assert "class 0 at 'conv': the score's gradient is zero everywhere" in found.cautions[0]
    assert not found.heatmap.any()


def normalised(channels):
    """A module whose output has its channels last, and is made of what works on the last axis."""
    return nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU())


@pytest.mark.parametrize("channels", [14, 10, 16, 21, 96])
def test_channels_last_where_the_channels_look_like_a_grid(channels):
    """14 x 14 cells and 14 channels say nothing by their numbers; what the layer is made of does."""

    class ChannelsLast(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, channels, 16, 16)
            self.last, self.after = normalised(channels), nn.Identity()
            self.head = nn.Linear(channels, 3)

        def forward(self, images):
            maps = self.last(self.patches(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return self.head(self.after(maps).mean((2, 3)))

    model = ChannelsLast().eval()
    for rows, columns in ((224, 224), (224, 320)):
        batch = images(2, rows, columns)
        wanted = glowmap.explain(model, batch, target=1, layer="after").raw
        assert_equal_up_to_rounding(glowmap.explain(model, batch, target=1, layer="last").raw, wanted)
        assert torch.equal(
            glowmap.explain(model, batch, target=1, layer="patches").raw.isfinite().all(), torch.tensor(True)
        )
        assert wanted.shape == (2, rows // 16, columns // 16)


def test_stock_models_with_channels_last():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.swin_v2_t(weights=None).eval()
    found = glowmap.explain(model, images(1, 256, 256), target=3, layer=["features.1", "features.7", "features.0"])
    assert [one.grid for one in found] == [(64, 64), (8, 8), (64, 64)]


def test_channels_last_signals():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.last, self.head = nn.Conv1d(1, 16, 8, 8), normalised(16), nn.Linear(16, 2)

        def forward(self, signal):
            return self.head(self.last(self.patches(signal).transpose(1, 2)).mean(1))

    assert glowmap.explain(Tokens().eval(), torch.randn(2, 1, 800), target=1, layer="last").grid == (100,)


def test_the_same_tensor_past_the_layer_is_not_the_layers():
    """Dropout in eval mode returns its input; what skips it must not count, alone or beside an earlier layer."""

    class Skipping(Classifier):
        def __init__(self):
            super().__init__()
            self.drop, self.more = nn.Dropout(), nn.Conv2d(8, 8, 1)

        def forward(self, images):
            maps = self.features(images)
            return self.head((maps + self.more(self.drop(maps)).relu()).mean((2, 3)))

    model = Skipping().eval()
    alone = glowmap.explain(model, images(), target=1, layer="drop")
    beside = glowmap.explain(model, images(), target=1, layer=["features", "drop"])
    assert torch.equal(beside[1].raw, alone.raw)
    assert not torch.allclose(beside[0].raw, alone.raw)


def test_a_layer_under_no_grad_with_a_way_around_is_noted():
    class HalfFrozen(Classifier):
        def forward(self, images):
            with torch.no_grad():
                maps = self.features(images)
                twice = maps * 2
            return self.head((maps + twice).mean((2, 3)))

    (caution,) = glowmap.explain(HalfFrozen().eval(), images(), target=1, layer="features").cautions
    assert "runs layer 'features' under torch.no_grad()" in caution


def test_another_thread_that_only_predicts_does_not_interfere():
    class Slow(Classifier):
        def forward(self, images):
            answer = super().forward(images)
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=lambda: self(globals()["images"](3, 24, 24)))
                other.start()
                other.join()
            return answer

    model = Slow().eval()
    found = glowmap.explain(model, images(), target=1, layer="features")
    assert torch.equal(found.raw, glowmap.explain(model, images(), target=1, layer="features").raw)
    assert found.cautions == ()
    assert found.grid == (4, 5)


def test_a_scripted_layer_and_the_whole_model():
    model = Classifier().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated, and still met
        model.features = torch.jit.script(model.features)
    with pytest.raises(LayerError, match="'features', a RecursiveScriptModule, takes no hooks"):
        glowmap.explain(model, images(), target=1, layer="features")
    with pytest.raises(LayerError, match="the layer given is the whole Classifier"):
        glowmap.explain(model, images(), target=1, layer=model)


class Tokens(Classifier):
    """The same classifier, whose maps pass its layer as tokens, a few others before them."""

    def __init__(self, before):
        super().__init__()
        self.before, self.layer = before, nn.Identity()

    def forward(self, images):
        maps = self.features(images)
        others = torch.ones(len(images), self.before, maps.shape[1])
        tokens = self.layer(torch.cat([others, maps.flatten(2).transpose(1, 2)], 1))
        return self.head(torch.tanh(tokens[:, self.before :].mean(1)))


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("method", ["grad_cam", "layer_cam"])
def test_tokens_are_laid_out_as_the_patches_they_stand_for(before, method):
    model, batch = Tokens(before).eval(), images(2)
    found = glowmap.explain(model, batch, target=1, layer="layer", method=method)
    wanted = glowmap.explain(model, batch, target=1, layer="features", method=method)
    torch.testing.assert_close(found.raw, wanted.raw)
    assert found.cautions == ()  # proven by where they look


@pytest.mark.parametrize(("size", "grid"), [((64,), (16,)), ((32, 32), (8, 8))], ids=["1D", "2D"])
def test_an_activation_is_read_as_the_layers_beside_it(size, grid):
    """Its own kind says nothing, and as many channels as cells fit either way: the linear layers around it tell."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            conv = {1: nn.Conv1d, 2: nn.Conv2d}[len(size)]
            self.patches = conv(3, 8, 4, 4)
            self.mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Identity())
            self.head = nn.Linear(8, 3)

        def forward(self, images):
            maps = self.mlp(self.patches(images).movedim(1, -1))
            return self.head(torch.tanh(maps).flatten(1, -2).mean(1))

    model, batch = Mixed().eval(), torch.randn(2, 3, *size)
    for layer in ("mlp.1", "mlp.2"):
        found = glowmap.explain(model, batch, target=1, layer=layer, method="hires_cam")
        maps = model.mlp[:2](model.patches(batch).movedim(1, -1)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(model.head(torch.tanh(maps).flatten(1, -2).mean(1))[:, 1].sum(), maps)
        assert found.grid == grid
        torch.testing.assert_close(found.raw, (maps * slope).sum(-1).detach())


def test_a_linear_head_says_nothing_of_the_layers_before_it():
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    headed = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3 * 6 * 8, 2)).eval()
    for one in (model, headed):
        found = glowmap.explain(one, torch.rand(1, 3, 6, 8), target=1, layer="0")  # 3 x 6 would pass for a grid as well
        assert found.grid == (6, 8)


class Reordering(nn.Module):
    """Its block has as many channels as rows and columns; ``is_last`` runs it on channels that come last."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = (
            nn.Conv2d(3, 8, 4, 4),
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()),
            nn.Linear(8, 5),
        )
        self.is_last = False

    def forward(self, images):
        maps = self.stem(images)
        maps = self.block(maps.permute(0, 2, 3, 1) if self.is_last else maps)
        return self.head(maps.mean((1, 2) if self.is_last else (2, 3)))


@pytest.mark.parametrize("layer", ["block", "block.1"])
def test_a_layout_is_read_anew_where_a_module_inside_was_replaced(layer):
    model, batch = Reordering().eval(), torch.randn(1, 3, 32, 32)
    glowmap.explain(model, batch, target=0, layer=layer)
    model.is_last, model.block[0] = True, nn.Linear(8, 8)
    again = glowmap.explain(model, batch, target=0, layer=layer)
    fresh = glowmap.explain(copy.deepcopy(model), batch, target=0, layer=layer)
    torch.testing.assert_close(again.raw, fresh.raw)
