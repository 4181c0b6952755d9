"""Whatever shape a model's inputs, outputs and layers have, its map is that of the same network written plainly."""

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import glowmap
from closeness import assert_equal_up_to_rounding
from glowmap.errors import InputError, LayerError, ModelError, TargetError
from model_state import assert_unchanged, state_of
from tiny_models.convolutional import Classifier, images, with_parameters

METHODS = ["grad_cam", "eigen_cam", "ablation_cam", "occlusion", "input_gradient", "integrated_grad_cam"]


def raw(model, given, layer="features.3", method="grad_cam", **asked):
    """The raw map for class 1; the model is given back as it was, always."""
    before = state_of(model)
    found = glowmap.explain(
        model, given, target=asked.pop("target", 1), layer=layer, method=with_parameters(method), **asked
    )
    assert_unchanged(before, state_of(model))
    return found.raw


def alike(kind, *arguments):
    """A classifier of another kind with the weights of a plain one, and that one."""
    plain = Classifier().eval()
    other = kind(*arguments).eval()
    other.load_state_dict(plain.state_dict(), strict=False)
    return other, plain


# -- inputs ------------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    picture: Tensor
    scale: Tensor
    name: str = "a street"


@dataclass(frozen=True)
class Frozen:
    picture: Tensor
    scale: Tensor


Named = namedtuple("Named", "picture scale")


def model_output(**parts):
    outputs = pytest.importorskip("transformers.utils")

    @dataclass
    class Parts(outputs.ModelOutput):
        picture: Any = None
        scale: Any = None

    return Parts(**parts)


class Reading(Classifier):
    """Takes its picture, and a factor for each, out of whatever it is given."""

    def __init__(self, take):
        super().__init__()
        self.take = take

    def forward(self, *arguments, **keywords):
        picture, scale = self.take(*arguments, **keywords)
        assert picture.ndim == 4
        return super().forward(picture * scale[:, None, None, None])


GIVEN = {
    "arguments": (lambda p, s: (p, s), lambda p, s: (p, s)),
    "the picture last": (lambda p, s: (s, p), lambda s, p: (p, s)),
    "keywords": (lambda p, s: {"x": p, "s": s, "mode": "fast", "flag": True}, lambda x, s, mode, flag: (x, s)),
    "any mapping": (lambda p, s: MappingProxyType({"x": p, "s": s}), lambda x, s: (x, s)),
    "ordered": (lambda p, s: OrderedDict(x=p, s=s), lambda x, s: (x, s)),
    "a list in a keyword": (lambda p, s: {"parts": [s, p]}, lambda parts: (parts[1], parts[0])),
    "one dict as the argument": (lambda p, s: ({"x": p, "more": {"s": (s,)}},), lambda d: (d["x"], d["more"]["s"][0])),
    "a dict that cannot be written": (lambda p, s: (MappingProxyType({"x": p, "s": s}),), lambda d: (d["x"], d["s"])),
    "a dataclass": (lambda p, s: Sample(p, s), lambda d: (d.picture, d.scale)),
    "a frozen dataclass": (lambda p, s: (Frozen(p, s), None), lambda d, n: (d.picture, d.scale)),
    "a named tuple": (lambda p, s: Named(p, s), lambda d: (d.picture, d.scale)),
    "a model output": (lambda p, s: model_output(picture=p, scale=s), lambda d: (d.picture, d["scale"])),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", GIVEN)
def test_the_image_is_found_wherever_it_is_given(way, method):
    give, take = GIVEN[way]
    model, plain = alike(Reading, take)
    picture, scale = images(2), torch.tensor([0.5, -2.0])
    given = give(picture, scale)
    wanted = raw(plain, picture * scale[:, None, None, None], method=method)
    found = raw(model, given, method=method)
    if method in ("occlusion", "input_gradient"):  # which change, and differentiate by, what is given
        for one, factor in enumerate(scale):
            alone = raw(model, give(picture[one : one + 1], scale[one : one + 1]), method=method)
            torch.testing.assert_close(found[one : one + 1], alone, rtol=1e-3, atol=1e-6)
            if method == "input_gradient":
                torch.testing.assert_close(found[one], wanted[one] * factor.abs())
    else:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert found.abs().max() > 1e-4
    assert torch.equal(picture, images(2))


def test_a_batch_of_features_is_keywords():
    features = pytest.importorskip("transformers").BatchFeature({"pixel_values": images(2), "scale": torch.ones(2)})
    model, plain = alike(Reading, lambda pixel_values, scale: (pixel_values, scale))
    assert_equal_up_to_rounding(raw(model, features), raw(plain, images(2)))


def test_smoothing_changes_the_image_where_it_is_nested():
    model, plain = alike(Reading, lambda d: (d.picture, d.scale))
    given = Sample(images(2), torch.ones(2))
    found, wanted = raw(model, given, smooth="flips"), raw(plain, images(2), smooth="flips")
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, raw(model, given))


def test_several_inputs_that_could_be_the_images_are_told():
    class Stereo(Classifier):
        def forward(self, left, right):
            return super().forward(left) - super().forward(right) * 2

    found = glowmap.explain(Stereo().eval(), (images(2), images(2, seed=3)), target=1, layer="features.3#1")
    assert found.cautions[:2] == (
        "of 2 inputs with 4 axes (2 x 3 x 16 x 20, 2 x 3 x 16 x 20) the first is taken for the images",
        "layer 'features.3' ran 2 times; run 1 is explained ('features.3#1' names the first)",
    )


def test_what_may_be_a_list_of_pictures_is_refused():
    model = Classifier().eval()
    for given in (([images()[0], images()[1]],), {"images": [images()[0]]}):
        with pytest.raises(
            InputError, match=r"tensors of 3 x 16 x 20 in a list seem to be single pictures.*torch.stack"
        ):
            glowmap.explain(model, given, layer="features.3")
    with pytest.raises(InputError, match=r"no tensor of the input can be images \(\(2, 3\) torch.float32\)"):
        glowmap.explain(model, {"parts": [torch.ones(2, 3)]}, layer="features.3")


def test_a_list_of_signals_is_no_list_of_pictures():
    class Signals(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, signals):
            return self.head(self.conv(signals[0]).relu().mean(2))

    found = glowmap.explain(Signals().eval(), {"signals": [torch.randn(2, 2, 30)]}, target=1, layer="conv")
    assert found.raw.shape == (2, 28)


def test_an_empty_list_that_the_model_fills_stays_the_callers():
    class Filling(Classifier):
        def forward(self, picture, cache, seen):
            cache.append(picture)
            seen["n"] = 1
            return super().forward(picture)

    cache, seen = [], {}
    glowmap.explain(Filling().eval(), (images(), cache, seen), target=1, layer="features.3", method="ablation_cam")
    assert cache == []
    assert seen == {}


# -- outputs -----------------------------------------------------------------------------------------------------------


@dataclass
class Answered:
    logits: Tensor
    loss: Any = None


class Answering(Classifier):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, pictures):
        return self.wrap(super().forward(pictures))


WRAPS = {
    "tuple": lambda out: (out, None),
    "list": lambda out: [out, "x"],
    "dict": lambda out: {"aux": out * 2, "out": out},
    "logits": lambda out: {"logits": out},
    "dataclass": Answered,
    "named tuple": lambda out: namedtuple("Out", "logits n")(out, 3),
}


@pytest.mark.parametrize("method", ["grad_cam", "ablation_cam", "rise", "input_gradient"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_outputs_of_any_structure(wrap, method):
    model, plain = alike(Answering, WRAPS[wrap])
    assert_equal_up_to_rounding(raw(model, images(), method=method), raw(plain, images(), method=method))


def test_a_model_output_is_read_and_ablated():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    model, plain = alike(Answering, lambda out: outputs.ImageClassifierOutput(logits=out, hidden_states=(out, out)))
    for method in ("grad_cam", "ablation_cam"):
        assert_equal_up_to_rounding(raw(model, images(), method=method), raw(plain, images(), method=method))


def test_outputs_without_scores_need_a_target():
    nothing, _ = alike(Answering, lambda out: None)
    with pytest.raises(TargetError, match="no class scores are found in the model's output, a NoneType"):
        glowmap.explain(nothing, images(), layer="features.3")
    deep, plain = alike(Answering, lambda out: {"a": [{"b": (out,)}]})
    found = raw(deep, images(), target=lambda out: out["a"][0]["b"][0][:, 1])
    assert_equal_up_to_rounding(found, raw(plain, images()))


# -- layers ------------------------------------------------------------------------------------------------------------


class Handing(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, maps):
        return self.wrap(maps)


class Layered(Classifier):
    """Its ``layer`` hands the maps on in some structure, out of which they are taken again."""

    def __init__(self, wrap, take):
        super().__init__()
        self.layer, self.take = Handing(wrap), take

    def forward(self, pictures):
        return self.head(self.take(self.layer(self.features(pictures))).mean((2, 3)))


@dataclass
class Held:
    maps: Tensor
    count: int = 1
    weights: Any = None


HANDED = {
    "tuple": (lambda m: (m, None), lambda t: t[0]),
    "dict": (lambda m: {"maps": m, "n": 2}, lambda t: t["maps"]),
    "dataclass": (Held, lambda t: t.maps),
    "frozen": (lambda m: Frozen(m, torch.ones(2)), lambda t: t.picture),
    "named": (lambda m: Named(m, 3), lambda t: t.picture),
    "deep": (lambda m: [{"a": (Held(m),)}], lambda t: t[0]["a"][0].maps),
    # several maps, of which one alone goes on
    "second of two": (lambda m: (m.detach() * 3, m), lambda t: t[1]),
    "beside weights": (lambda m: Held(m, 2, torch.ones(len(m), 2, 20, 20)), lambda t: t.maps),
    "twice the same": (lambda m: (m, m), lambda t: t[0] + t[1] * 0),
}


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam", "ablation_cam", "integrated_grad_cam"])
@pytest.mark.parametrize("way", HANDED)
def test_layers_that_return_structures(way, method):
    model, plain = alike(Layered, *HANDED[way])
    wanted = raw(plain, images(), layer="features", method=method)
    torch.testing.assert_close(raw(model, images(), layer="layer", method=method), wanted, rtol=1e-4, atol=1e-6)
    assert wanted.any()


def test_which_of_several_maps_is_taken_is_stated():
    model, plain = alike(Layered, *HANDED["second of two"])
    found = glowmap.explain(model, images(), target=1, layer="layer", smooth="flips")
    assert found.cautions == (
        "layer 'layer' returns 2 maps (2 x 8 x 4 x 5, 2 x 8 x 4 x 5); number 2 of them is explained, on which alone the model's "
        "output depends",
    )
    assert_equal_up_to_rounding(
        found.raw, glowmap.explain(plain, images(), target=1, layer="features", smooth="flips").raw
    )


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam"])
def test_several_maps_of_which_not_one_alone_is_used_are_refused(method):
    model, _ = alike(Layered, lambda m: (m * 3, m), lambda t: t[0] + t[1])
    with pytest.raises(
        LayerError, match=r"layer 'layer' returns 2 maps \(2 x 8 x 4 x 5, 2 x 8 x 4 x 5\), of which not one"
    ):
        glowmap.explain(model, images(), target=1, layer="layer", method=method)


class Looped(Classifier):
    """Runs its body three times, each time on what it made of the maps before."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, pictures):
        maps = self.features(pictures)
        for factor in (1.0, 0.5, 2.0):
            maps = torch.tanh(self.body(maps) * factor)
        return self.head(maps.mean((2, 3)))


class Unrolled(Classifier):
    """The same, each run with a module of its own."""

    def __init__(self):
        super().__init__()
        self.bodies = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, pictures):
        maps = self.features(pictures)
        for body, factor in zip(self.bodies, (1.0, 0.5, 2.0), strict=True):
            maps = torch.tanh(body(maps) * factor)
        return self.head(maps.mean((2, 3)))


def looped():
    model, unrolled = Looped().eval(), Unrolled().eval()
    unrolled.load_state_dict(model.state_dict(), strict=False)
    for body in unrolled.bodies:
        body.load_state_dict(model.body.state_dict())
    return model, unrolled


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam", "eigen_cam", "ablation_cam", "integrated_grad_cam"])
@pytest.mark.parametrize(("name", "own"), [("body#1", 0), ("body#2", 1), ("body#3", 2), ("body", 2)])
def test_any_run_of_a_layer_can_be_named(name, own, method):
    model, unrolled = looped()
    found = raw(model, images(), layer=name, method=method)
    torch.testing.assert_close(
        found, raw(unrolled, images(), layer=f"bodies.{own}", method=method), rtol=1e-3, atol=1e-5
    )


def test_several_runs_at_once_and_what_is_said_of_them():
    model, unrolled = looped()
    found = glowmap.explain(model, images(), target=1, layer=["body#1", "body#3", "body", "body#2"])
    wanted = glowmap.explain(unrolled, images(), target=1, layer=["bodies.0", "bodies.1", "bodies.2"])
    for one, own in zip(found, (0, 2, 2, 1), strict=True):
        torch.testing.assert_close(one.raw, wanted[own].raw)
    assert [caution.split("; ")[1].split(" (")[0] for caution in found[0].cautions] == [
        "run 1 is explained",
        "its last run is explained",
        "run 2 is explained",
    ]
    with pytest.raises(
        LayerError, match="'body' ran 3 times, so it has no such run as 'body#4'; name one of body#1 to body#3"
    ):
        glowmap.explain(model, images(), target=1, layer="body#4")


def test_a_shared_module_has_either_name():
    class Shared(Classifier):
        def __init__(self):
            super().__init__()
            self.same = self.features[3]

    model = Shared().eval()
    assert torch.equal(raw(model, images(), layer="same"), raw(model, images(), layer="features.3"))


def test_tokens_with_the_batch_second_are_asked_again():
    class TokensFirst(Classifier):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, pictures):
            maps = self.features(pictures)
            tokens = self.layer(maps.flatten(2).permute(2, 0, 1))
            return self.head(torch.tanh(tokens).mean(0))

    class Plain(TokensFirst):
        def forward(self, pictures):
            return self.head(torch.tanh(self.features(pictures)).mean((2, 3)))

    model = TokensFirst().eval()
    plain = Plain().eval()
    plain.load_state_dict(model.state_dict())
    for method in ("grad_cam", "ablation_cam", "integrated_grad_cam"):
        found = raw(model, images(3), layer="layer", method=method)
        torch.testing.assert_close(found, raw(plain, images(3), layer="features", method=method), rtol=1e-4, atol=1e-6)


# -- what else models are made of --------------------------------------------------------------------------------------


def test_the_users_own_hooks_count_and_stay():
    model, plain = Classifier().eval(), Classifier().eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        plain.features[3].weight.mul_(2)
        plain.features[3].bias.mul_(2)
    seen = []
    model.features[3].register_forward_hook(lambda _module, _inputs, output: output * 2)
    model.head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape))
    for method in ("grad_cam", "ablation_cam"):
        torch.testing.assert_close(raw(model, images(), method=method), raw(plain, images(), method=method))
    assert seen
    assert len(model.features[3]._forward_hooks) == 1


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_the_users_own_backward_hooks_fire_and_do_no_harm():
    model, plain = alike(Classifier)
    seen = []
    handles = [
        model.features[3].register_full_backward_hook(lambda *_: seen.append("layer")),
        model.head.register_full_backward_hook(lambda *_: seen.append("head")),
        model.features[3].register_forward_hook(lambda _module, inputs, keywords, output: None, with_kwargs=True),
    ]
    for method in ("grad_cam", "ablation_cam", "input_gradient", "integrated_grad_cam"):
        torch.testing.assert_close(raw(model, images(), method=method), raw(plain, images(), method=method))
    assert {*seen} == {"layer", "head"}
    for handle in handles:
        handle.remove()


def test_a_forward_that_was_patched_on_an_instance():
    model, plain = Classifier().eval(), Classifier().eval()
    plain.load_state_dict(model.state_dict())
    own = model.features[3].forward
    model.features[3].forward = lambda maps: own(maps) * 3
    with torch.no_grad():
        plain.features[3].weight.mul_(3)
        plain.features[3].bias.mul_(3)
    for method in ("grad_cam", "ablation_cam"):
        torch.testing.assert_close(raw(model, images(), method=method), raw(plain, images(), method=method))


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "old spectral_norm"])
def test_weights_that_are_made_as_the_model_runs(norm):
    model = Classifier().eval()
    made = {
        "weight_norm": nn.utils.parametrizations.weight_norm,
        "spectral_norm": nn.utils.parametrizations.spectral_norm,
        "old spectral_norm": nn.utils.spectral_norm,
    }[norm]
    made(model.features[3])
    model.train()
    model(images())  # a step of its power iteration
    model.eval()
    plain = Classifier().eval()
    with torch.no_grad():
        model(images())
        plain.load_state_dict(
            {name: model.state_dict().get(name, tensor) for name, tensor in plain.state_dict().items()}
        )
        plain.features[3].weight.copy_(model.features[3].weight)
    for method in ("grad_cam", "ablation_cam"):
        torch.testing.assert_close(raw(model, images(), method=method), raw(plain, images(), method=method))


class Adapted(nn.Module):
    """A layer with a product of two thin matrices beside it, as adapters are made."""

    def __init__(self, own):
        super().__init__()
        self.base_layer = own
        self.lora_A, self.lora_B = nn.Conv2d(6, 2, 3, 2, 1, bias=False), nn.Conv2d(2, 8, 1, bias=False)
        for parameter in own.parameters():
            parameter.requires_grad_(False)

    def forward(self, maps):
        return self.base_layer(maps) + self.lora_B(self.lora_A(maps))


def test_an_adapter_around_a_layer():
    model = Classifier().eval()
    plain = copy.deepcopy(model)
    model.features[3] = Adapted(model.features[3]).eval()
    with torch.no_grad():
        both = torch.einsum(
            "om,mikl->oikl", model.features[3].lora_B.weight[:, :, 0, 0], model.features[3].lora_A.weight
        )
        plain.features[3].weight.add_(both)
    torch.testing.assert_close(raw(model, images()), raw(plain, images()), rtol=1e-4, atol=1e-6)
    alone = raw(model, images(), layer="features.3.base_layer")
    assert not torch.allclose(alone, raw(model, images()))


def test_a_model_without_parameters():
    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.AvgPool2d(4)

        def forward(self, pictures):
            maps = self.pool(pictures)
            return torch.stack([maps.mean((1, 2, 3)), maps[:, 0].square().mean((1, 2))], 1)

    found = raw(Bright(), images(2), layer="pool", method="hires_cam")
    maps = nn.functional.avg_pool2d(images(2), 4)[:, 0]
    torch.testing.assert_close(found, 2 * maps.square() / maps[0].numel())


def test_very_deep_names():
    model = Classifier().eval()
    deep = model.features[3]
    for _ in range(60):
        deep = nn.Sequential(OrderedDict(inner=deep))
    wanted = raw(model, images())
    model.features[3] = deep
    assert torch.equal(raw(model, images(), layer="features.3" + ".inner" * 60), wanted)


def test_a_model_that_fails_says_on_what_and_is_given_back():
    def fail(*_arguments):
        raise ValueError("out of order")

    model, _ = alike(Reading, fail)
    before = state_of(model)
    with pytest.raises(
        ModelError, match="Reading raised ValueError: out of order; check that it takes an input of 2 x 3"
    ):
        glowmap.explain(model, Sample(images(2), torch.ones(2)), layer="features.3")
    assert_unchanged(before, state_of(model))


class Collecting(Classifier):
    """As some libraries do, it has a hook of its own collect a layer's output, and reads what was collected."""

    def __init__(self):
        super().__init__()
        self.collected = []
        self.features[1].register_forward_hook(lambda _module, _inputs, output: self.collected.append(output))

    def forward(self, pictures):
        self.collected.clear()
        deep = self.features(pictures)
        return self.head(deep.mean((2, 3))) + self.collected[0].mean((2, 3))[:, :4] ** 2


@pytest.mark.parametrize("method", ["grad_cam", "ablation_cam", "integrated_grad_cam"])
def test_what_hooks_collect_of_a_layer_is_on_the_way_to_the_score(method):
    class Plain(Classifier):
        def forward(self, pictures):
            early = self.early(self.features[:2](pictures))
            return self.head(self.features[2:](early).mean((2, 3))) + early.mean((2, 3))[:, :4] ** 2

    model, plain = Collecting().eval(), Plain().eval()
    plain.load_state_dict(model.state_dict())
    plain.early = nn.Identity()
    found, wanted = (
        raw(model, images(), layer="features.1", method=method),
        raw(plain, images(), layer="early", method=method),
    )
    torch.testing.assert_close(found, wanted)
    assert wanted.std() > 0
