"""Borrow and give back: after every call, also one that failed, the model and the caller's things are as they were."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
from glowmap.errors import GlowmapError
from glowmap.evidence import INPUT, map_places
from tiny_models.convolutional import ON_MAPS, Classifier, Segmenter, images, with_parameters

NEEDS = {name: {*glowmap.METHODS[name].needs} for name in ON_MAPS}
AT_PIXELS = {name for name, method in glowmap.METHODS.items() if map_places(method, ["layer"]) == [INPUT]} | {
    "guided_grad_cam"
}
every_method = pytest.mark.parametrize("method", NEEDS)
method_for_any_head = pytest.mark.parametrize("method", [name for name in NEEDS if name != "cam"])
plain_method = pytest.mark.parametrize(
    "method", [name for name in NEEDS if NEEDS[name] <= {"activations", "gradients"}]
)
# Poly-CAM keeps only channels that raise the score, of which an untrained model may have none.
layer_method = pytest.mark.parametrize(
    "method", [name for name in NEEDS if name not in AT_PIXELS | {"cam", "poly_cam"}]
)
# CAM wants the layer that is pooled into the head, and those that divide by a channel's sum one without signs.
AFTER_RELU = {"cam", "xgrad_cam", "grad_cam_pp", "smooth_grad_cam_pp"}


def layer_for(method):
    return "features.4" if method in AFTER_RELU else "features.3"


def everything_of(model):
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "wanting": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "state": copy.deepcopy(model.state_dict()),
        "identities": {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        "hooks": {name: (len(m._forward_hooks), len(m._backward_hooks)) for name, m in model.named_modules()},
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    for part in before:
        torch.testing.assert_close(after[part], before[part], rtol=0, atol=0, msg=f"{part} changed")


@every_method
@pytest.mark.parametrize("training", [False, True])
def test_all_is_given_back(method, training):
    model = Classifier().train(training)
    model.features[1].eval()  # modes differ from module to module
    model.features[0].weight.requires_grad_(False)
    model(images()).sum().backward()  # the user's own gradients
    before, batch = everything_of(model), images().requires_grad_()
    kept = batch.detach().clone()
    glowmap.explain(model, batch, target=1, layer=layer_for(method), method=with_parameters(method))
    assert_same(before, everything_of(model))
    assert torch.equal(batch, kept)
    assert batch.grad is None
    assert batch.requires_grad


@every_method
@pytest.mark.parametrize("where", ["features.4", "head"])
def test_all_is_given_back_after_an_exception(method, where):
    model = Classifier().train()
    module = model.get_submodule(where)

    def fail(*_):
        torch.rand(3)
        raise RuntimeError("in the middle")

    handle = module.register_forward_hook(fail)
    before = everything_of(model)
    with pytest.raises(GlowmapError, match="in the middle"):
        glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert_same(before, everything_of(model))
    handle.remove()


@every_method
def test_all_is_given_back_after_a_failing_target(method):
    model = Classifier().train()
    before = everything_of(model)
    with pytest.raises(GlowmapError, match="no class 9"):
        glowmap.explain(model, images(), target=9, layer=layer_for(method), method=with_parameters(method))
    assert_same(before, everything_of(model))


@every_method
def test_a_frozen_model_gives_the_same_map(method):
    model = Classifier().eval()
    free = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    frozen = glowmap.explain(
        model.requires_grad_(False), images(), target=1, layer=layer_for(method), method=with_parameters(method)
    )
    assert torch.equal(free.raw, frozen.raw)
    assert free.raw.any()


@method_for_any_head
def test_an_inplace_relu_after_the_layer_spoils_nothing(method):
    plain, inplace = Classifier().eval(), Classifier(inplace=True).eval()
    inplace.load_state_dict(plain.state_dict())
    for layer in ("features.0", "features.3", "features.4"):
        wanted = glowmap.explain(plain, images(), target=1, layer=layer, method=with_parameters(method)).raw
        found = glowmap.explain(inplace, images(), target=1, layer=layer, method=with_parameters(method)).raw
        assert torch.equal(found, wanted), layer
        assert found.any()


@every_method
def test_training_mode_is_explained_as_evaluation_and_said(method):
    model = Classifier()
    model(images())  # running statistics that differ from the batch's
    wanted = glowmap.explain(model.eval(), images(), target=1, layer=layer_for(method), method=with_parameters(method))
    found = glowmap.explain(model.train(), images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert torch.equal(found.raw, wanted.raw)
    assert "training mode" in found.cautions[0]
    assert found.cautions[1:] == wanted.cautions


@every_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_under_no_grad_get_the_same_map(method, mode):
    model = Classifier().eval()
    wanted = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    with mode():
        found = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
        assert not torch.is_grad_enabled()
    assert torch.equal(found.raw, wanted.raw)


@every_method
def test_a_model_that_writes_into_its_input_leaves_the_callers_alone(method):
    class Shifting(Classifier):
        def forward(self, images):
            return super().forward(images.sub_(0.5).mul_(2))

    batch = images()
    kept = batch.clone()
    found = glowmap.explain(Shifting().eval(), batch, target=1, layer=layer_for(method), method=with_parameters(method))
    assert torch.equal(batch, kept)
    assert found.raw.any()


@every_method
def test_random_draws_of_the_model_leave_the_global_generator_alone(method):
    class Noisy(Classifier):
        def forward(self, images):
            return super().forward(images + torch.randn_like(images))

    model = Noisy().eval()
    first = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    again = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert torch.equal(first.raw, again.raw)


@every_method
def test_buffers_that_a_model_writes_in_eval_mode_are_restored(method):
    class Counting(Classifier):
        def __init__(self):
            super().__init__()
            self.register_buffer("written", torch.zeros(2))
            self.register_buffer("assigned", torch.zeros(2))

        def forward(self, images):
            self.written += 1
            self.assigned = self.assigned + 1
            return super().forward(images)

    model = Counting().eval()
    assigned = model.assigned
    glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert model.written.tolist() == [0, 0]
    assert model.assigned is assigned


@every_method
def test_nothing_is_kept(method):
    """No graph, no activations, no model: only what the explanation shows."""
    model = Classifier().eval()
    found = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert not found.raw.requires_grad
    assert not found.scores.requires_grad
    assert not found.heatmap.requires_grad
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@plain_method
def test_no_graph_below_the_layer_and_no_weight_gradients(method, monkeypatch):
    """The backward pass sees the layer's maps and nothing else; below the layer nothing was recorded."""
    model, asked, below = Classifier(), [], []
    handle = model.features[2].register_forward_hook(lambda _m, _i, output: below.append(output.requires_grad))
    grad = torch.autograd.grad

    def spy(outputs, inputs, *rest, **options):
        asked.extend(inputs)
        return grad(outputs, inputs, *rest, **options)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("a full backward pass"))
    glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    handle.remove()
    assert below == [False]
    assert [tuple(tensor.shape) for tensor in asked] == [(2, 8, 4, 5)] * ("gradients" in NEEDS[method])
    assert all(tensor.is_leaf for tensor in asked)


@method_for_any_head
@pytest.mark.parametrize(("model", "layers"), [(Classifier, "features.3"), (Segmenter, "encoder.2")])
def test_a_batch_is_its_images_one_by_one(method, model, layers):
    model, batch = model().eval(), images(3)
    target = glowmap.targets.Pixels(1, torch.ones(16, 20)) if layers == "encoder.2" else 1
    layers = layer_for(method) if layers == "features.3" else layers
    together = glowmap.explain(model, batch, target=target, layer=layers, method=with_parameters(method))
    for i in range(3):
        alone = glowmap.explain(model, batch[i : i + 1], target=target, layer=layers, method=with_parameters(method))
        span = float(alone.raw.abs().max())
        torch.testing.assert_close(together.raw[i : i + 1], alone.raw, rtol=1e-4, atol=1e-5 * span + 1e-12)
        torch.testing.assert_close(together.heatmap[i : i + 1], alone.heatmap, rtol=0, atol=1e-3)


@plain_method
def test_several_layers_and_questions_equal_one_by_one_from_one_forward_pass(method):
    model, passes = Classifier().eval(), []
    model.head.register_forward_hook(lambda *_: passes.append(1))
    layers, questions = ["features.0", "features.3", "features.4"], [2, 0]
    together = glowmap.explain(model, images(), target=questions, layer=layers, method=with_parameters(method))
    assert len(passes) == 1
    assert [(one.target_names[0], one.layer) for one in together] == [
        (f"class {q}", x) for q in questions for x in layers
    ]
    for one in together:
        question = int(one.target_names[0].removeprefix("class "))
        alone = glowmap.explain(model, images(), target=question, layer=one.layer, method=with_parameters(method))
        torch.testing.assert_close(one.raw, alone.raw, rtol=1e-5, atol=1e-7)


@plain_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(method, dtype):
    model = Classifier().eval()
    wanted = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method)).raw
    found = glowmap.explain(
        model.to(dtype), images().to(dtype), target=1, layer=layer_for(method), method=with_parameters(method)
    ).raw
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = {torch.float16: 3e-3, torch.bfloat16: 8e-2, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


@layer_method
@pytest.mark.parametrize(
    ("convolution", "shape", "grid"), [(nn.Conv1d, (2, 3, 24), (12,)), (nn.Conv3d, (2, 3, 6, 8, 10), (3, 4, 5))]
)
def test_signals_and_volumes(method, convolution, shape, grid):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = convolution(3, 4, 3, 2, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            return self.head(self.layer(images).relu().flatten(2).mean(2))

    found = glowmap.explain(Net().eval(), torch.randn(shape), target=0, layer="layer", method=with_parameters(method))
    assert found.raw.shape[1:] == grid
    assert found.raw.any()
    assert found.heatmap.shape == (shape[0], *shape[2:])


@layer_method
def test_channels_last_output_is_read_by_its_strides(method):
    class ChannelsLast(Classifier):
        def __init__(self):
            super().__init__()
            self.last = nn.Identity()

        def forward(self, images):
            return self.head(self.last(self.features(images).permute(0, 2, 3, 1)).mean((1, 2)))

    model = ChannelsLast().eval()
    wide = images(rows=32, columns=64)
    first = glowmap.explain(model, wide, target=1, layer="features.4", method=with_parameters(method))
    last = glowmap.explain(model, wide, target=1, layer="last", method=with_parameters(method))
    assert last.grid == (8, 16)
    torch.testing.assert_close(last.raw, first.raw, rtol=1e-3, atol=1e-4 * float(first.raw.abs().max()))


@every_method
def test_a_target_may_itself_ask_for_an_explanation(method):
    model = Classifier().eval()
    wanted = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))

    def curious(output):
        inner = glowmap.explain(
            model, images(seed=9), target=0, layer=layer_for(method), method=with_parameters(method)
        )
        assert inner.raw.any()
        return output[:, 1]

    found = glowmap.explain(model, images(), target=curious, layer=layer_for(method), method=with_parameters(method))
    assert torch.equal(found.raw, wanted.raw)


@every_method
def test_threads_that_share_a_model_take_turns(method):
    model = Classifier().train()
    before = everything_of(model)
    batches = [images(seed=seed) for seed in range(8)]
    alone = [
        glowmap.explain(model, batch, target=1, layer=layer_for(method), method=with_parameters(method)).raw
        for batch in batches
    ]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(
                lambda batch: (
                    glowmap.explain(model, batch, target=1, layer=layer_for(method), method=with_parameters(method)).raw
                ),
                batches * 4,
            )
        )
    for found, wanted in zip(together, alone * 4, strict=True):
        assert torch.equal(found, wanted)
    assert_same(before, everything_of(model))


def test_threads_whose_models_draw_numbers_give_the_random_state_back():
    class Noisy(Classifier):
        def forward(self, batch):
            torch.rand(len(batch) * 1000)
            return super().forward(batch)

    models = [Noisy().eval() for _ in range(4)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model: [glowmap.explain(model, images(), target=1) for _ in range(8)], models * 3))
    assert torch.equal(before, torch.get_rng_state())


@every_method
def test_new_buffers_and_flags_set_while_the_model_runs_are_undone(method):
    class Caching(Classifier):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", None)

        def forward(self, images):
            self.cache = torch.ones(2)
            self.head.register_buffer("late", torch.ones(1))
            self.features.train()
            self.head.weight.requires_grad_(True)
            return super().forward(images)

    model = Caching().eval().requires_grad_(False)
    before = everything_of(model)
    glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert_same(before, everything_of(model))
    assert model.cache is None


@every_method
def test_a_model_that_is_not_ready_is_refused_before_it_is_touched(method):
    with torch.inference_mode():
        built_inside = Classifier()
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for model, layer, message in (
        (built_inside, "features.3", r"built under torch.inference_mode\(\)"),
        (lazy, "0", "parameter '0.weight' of Sequential has no shape yet; run the model once"),
    ):
        flags = [parameter.requires_grad for parameter in model.parameters()]
        with pytest.raises(GlowmapError, match=message):
            glowmap.explain(model, images(), target=1, layer=layer, method=with_parameters(method))
        assert [parameter.requires_grad for parameter in model.parameters()] == flags


@method_for_any_head
def test_models_that_reuse_their_input_work_under_inference_mode(method):
    class Reusing(Classifier):
        def forward(self, images):
            images.sub_(0.5)
            return self.head((self.features(images) * images.mean()).mean((2, 3)))

    model = Reusing().eval()
    wanted = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    with torch.inference_mode():
        found = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
        loaded = glowmap.load(model, mean=0.0)
        pictures = glowmap.explain(
            loaded, np.full((16, 20, 3), 0.5), target=1, layer=layer_for(method), method=with_parameters(method)
        )
    assert torch.equal(found.raw, wanted.raw)
    assert pictures.raw.isfinite().all()
