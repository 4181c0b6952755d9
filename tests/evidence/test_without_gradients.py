"""Models through which no gradient comes: what needs none works, and the rest says what is in the way and what works."""

import copy
import warnings

import pytest
import torch
from torch import nn

import glowmap
from closeness import assert_equal_up_to_rounding
from glowmap.errors import GlowmapError, LayerError, ModelError, TargetError
from glowmap.methods import GRADIENT_FREE
from model_state import assert_unchanged, state_of
from tiny_models.convolutional import Classifier, images, with_parameters

LAYERED = ["eigen_cam", "score_cam", "ablation_cam"]
OF_THE_INPUT = ["occlusion", "rise"]


def raw(model, method, layer="features.3", given=None):
    given = images(2) if given is None else given
    return glowmap.explain(model, given, target=1, layer=layer, method=with_parameters(method)).raw


def refused(model, method="grad_cam", layer="features.3"):
    with pytest.raises(GlowmapError) as caught:
        glowmap.explain(model, images(2), target=1, layer=layer, method=method)
    return caught.value


def test_the_methods_that_are_named_need_no_gradients():
    for name in GRADIENT_FREE.partition(": ")[2].split(", "):
        assert not {"gradients", "curvature", "gradients_of_maps"} & {*glowmap.METHODS[name].needs}


class NoGrad(Classifier):
    @torch.no_grad()
    def forward(self, pictures):
        return super().forward(pictures)


class Inference(Classifier):
    @torch.inference_mode()
    def forward(self, pictures):
        return super().forward(pictures)


class HalfInference(Classifier):
    def forward(self, pictures):
        with torch.inference_mode():
            maps = self.features(pictures)
        return self.head(maps.clone().mean((2, 3)))


class Detached(Classifier):
    def forward(self, pictures):
        return super().forward(pictures).detach()


@pytest.mark.parametrize("kind", [NoGrad, Inference, HalfInference, Detached])
def test_what_needs_no_gradient_works_and_all_is_given_back(kind):
    plain = Classifier().eval()
    model = kind().eval()
    model.load_state_dict(plain.state_dict())
    before = state_of(model)
    for method in LAYERED + OF_THE_INPUT:
        torch.testing.assert_close(raw(model, method), raw(plain, method))
    error = refused(model)
    assert_unchanged(before, state_of(model))
    fact = {
        NoGrad: "no gradient to layer 'features.3'; the model runs it under torch.no_grad(); remove that",
        Inference: "the model runs layer 'features.3' under torch.inference_mode(), where no gradient can begin",
        HalfInference: "the model runs layer 'features.3' under torch.inference_mode(), where no gradient can begin",
        Detached: "no gradient to layer 'features.3'; either",
    }[kind]
    assert fact in str(error)
    assert kind is Detached or GRADIENT_FREE in str(error)


def test_layers_after_a_part_in_inference_mode_have_gradients():
    model, plain = HalfInference().eval(), Classifier().eval()
    for one in (model, plain):
        one.head = nn.Sequential(
            nn.Unflatten(1, (8, 1, 1)), nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(32, 4)
        )
    plain.load_state_dict(model.state_dict())
    assert_equal_up_to_rounding(raw(model, "hires_cam", "head.1"), raw(plain, "hires_cam", "head.1"))


# -- quantised ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def quantisation():
    quantisation = pytest.importorskip("torch.ao.quantization")
    if not {"x86", "fbgemm", "qnnpack"} & {*torch.backends.quantized.supported_engines}:
        pytest.skip("this torch has no engine for quantised numbers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still met
        yield quantisation


def test_dynamically_quantised_heads(quantisation):
    plain = Classifier().eval()
    model = quantisation.quantize_dynamic(copy.deepcopy(plain), {nn.Linear}, dtype=torch.qint8)
    before = {name: value for name, value in state_of(model).items() if name not in ("state", "identities")}
    assert_equal_up_to_rounding(raw(model, "eigen_cam"), raw(plain, "eigen_cam"))  # before the head all is as it was
    for method in ("score_cam", "ablation_cam", "rise"):
        found, wanted = (raw(one, method).flatten() for one in (model, plain))
        assert float(torch.corrcoef(torch.stack([found, wanted]))[0, 1]) > 0.98
    error = refused(model)
    assert "part 'head' of the model is quantised and passes no gradient; use a method that needs no gradients" in str(
        error
    )
    assert_unchanged(before, {name: state_of(model)[name] for name in before})


@pytest.fixture
def quantised(quantisation):
    """A network of quantised convolutions, and the one in floating point that it was made of."""
    layers = [
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    plain = nn.Sequential(quantisation.QuantStub(), *layers, nn.Linear(8, 4), quantisation.DeQuantStub()).eval()
    plain.qconfig = quantisation.get_default_qconfig("x86")
    prepared = quantisation.prepare(plain)
    prepared(images(2))
    return quantisation.convert(prepared), plain


def test_statically_quantised_networks(quantised):
    model, plain = quantised
    for method in ("eigen_cam", "score_cam", "ablation_cam", "rise"):
        found, wanted = (raw(one, method, "3").flatten() for one in (model, plain))
        assert float(torch.corrcoef(torch.stack([found, wanted]))[0, 1]) > 0.95
    error = refused(model, layer="3")
    assert isinstance(error, LayerError)
    assert "layer '3' puts out quantised numbers, where no gradient can begin; bring the model from before" in str(
        error
    )


def test_ablating_quantised_maps_is_exact_but_for_the_last_digit(quantised):
    model, _ = quantised
    found = raw(model, "ablation_cam", "3", images(1))
    with torch.no_grad():
        maps = model[:4](images(1))
        head = model[4:]
        score, drops = head(maps)[0, 1], []
        for channel in range(8):
            without = maps.dequantize().clone()
            without[:, channel] = 0
            drops.append(
                score - head(torch.quantize_per_tensor(without, maps.q_scale(), maps.q_zero_point(), maps.dtype))[0, 1]
            )
    wanted = (maps.dequantize()[0] * torch.stack(drops)[:, None, None]).sum(0)
    digit = model[7].scale * maps.dequantize()[0].abs().sum(0)  # of each score, which rounding may turn
    assert ((found[0] - wanted).abs() <= digit).all()
    assert float(torch.corrcoef(torch.stack([found[0].flatten(), wanted.flatten()]))[0, 1]) > 0.95


# -- scripted, traced, exported ----------------------------------------------------------------------------------------


@pytest.fixture
def plain():
    return Classifier().eval()


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, images(2))])
def test_scripted_and_traced_models(plain, make):
    model = make(plain)
    before = state_of(model)
    for method in (*OF_THE_INPUT, "input_gradient"):
        torch.testing.assert_close(raw(model, method, None), raw(plain, method, None))
    for method in ("grad_cam", "eigen_cam"):
        error = refused(model, method)
        assert isinstance(error, LayerError)
        assert "occlusion" in str(error)
        assert "rise" in str(error)
    assert_unchanged(before, state_of(model))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_scripted_part_leaves_the_rest_as_it_is(plain):
    model = copy.deepcopy(plain)
    model.features = torch.jit.script(model.features)
    with pytest.raises(
        LayerError, match="'features.3', a RecursiveScriptModule, takes no hooks; bring the module from before"
    ):
        raw(model, "grad_cam")
    scripted_head = copy.deepcopy(plain)
    scripted_head.head = torch.jit.script(plain.head)
    for method in ("grad_cam", "ablation_cam"):
        torch.testing.assert_close(raw(scripted_head, method), raw(plain, method))


@pytest.mark.parametrize("batch", [1, 2])
def test_exported_models_take_as_many_images_as_they_were_exported_for(plain, batch):
    """The default export takes one number of images alone."""
    model = torch.export.export(plain, (images(batch),)).module()
    for method in OF_THE_INPUT:
        torch.testing.assert_close(raw(model, method, None, images(batch)), raw(plain, method, None, images(batch)))
    with pytest.raises(ModelError, match=r"takes an input of \d+ x 3 x 16 x 20") as caught:
        raw(model, "ablation_cam" if batch > 1 else "occlusion", None, images(3))
    assert "Guard failed" in str(caught.value)


def test_exported_models_have_no_layers(plain):
    model = torch.export.export(plain, (images(2),)).module()
    error = refused(model)
    assert isinstance(error, LayerError)
    assert "did not run in this forward pass" in str(error)
    assert "exported" in str(error)
    assert "for these use occlusion or rise" in str(error)


def test_a_symbolic_trace_is_explained_as_its_model(plain):
    model = torch.fx.symbolic_trace(plain)
    for method in ("grad_cam", "ablation_cam"):
        torch.testing.assert_close(raw(model, method), raw(plain, method))


def test_a_model_made_for_one_number_of_images_says_so(plain):
    class Rigid(Classifier):
        def forward(self, pictures):
            return super().forward(pictures.view(2, 3, 16, 20))

    model = Rigid().eval()
    model.load_state_dict(plain.state_dict())
    for method in ("rise", "occlusion", "grad_cam", "input_gradient"):
        torch.testing.assert_close(raw(model, method), raw(plain, method))
    with pytest.raises(ModelError, match="x 3 x 16 x 20 .*, and any number of images, not 2 alone"):
        raw(model, "smooth_grad")


def test_a_layer_whose_forward_is_called_past_its_hooks():
    class Past(Classifier):
        def forward(self, pictures):
            return self.head(self.features.forward(pictures).mean((2, 3)))

    model, plain = Past().eval(), Classifier().eval()
    plain.load_state_dict(model.state_dict())
    with pytest.raises(LayerError, match=r"'features' did not run .*whose .forward\(\) or .weight is used alone"):
        raw(model, "grad_cam", "features")
    assert_equal_up_to_rounding(raw(model, "grad_cam", "features.4"), raw(plain, "grad_cam", "features"))


def test_a_target_that_detaches(plain):
    with pytest.raises(TargetError, match="the model or the target detaches it on the way"):
        glowmap.explain(plain, images(), target=lambda out: out[:, 1].detach(), layer="features.3")
