"""Borrow and give back: after every call, also one that failed, the model and the caller's things are as they were."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
from closeness import assert_equal_up_to_rounding
from evidence_kinds import representatives
from glowmap.errors import GlowmapError
from model_state import assert_unchanged, state_of
from tiny_models.convolutional import ON_MAPS, Classifier, Segmenter, images, with_parameters

NEEDS = {name: {*glowmap.METHODS[name].needs} for name in ON_MAPS}
every_method = pytest.mark.parametrize("method", NEEDS)
# What a call does to a model hangs on the evidence that it collects, not on the formula that makes a map of it.
KINDS = representatives(NEEDS, preferred=("grad_cam", "score_cam"))
every_kind = pytest.mark.parametrize("method", KINDS)
kind_for_any_head = pytest.mark.parametrize("method", [name for name in KINDS if name != "cam"])
plain_kind = pytest.mark.parametrize("method", [name for name in KINDS if NEEDS[name] <= {"activations", "gradients"}])
# These draw numbers themselves, so they too must leave the generators alone.
kind_or_random = pytest.mark.parametrize(
    "method", [name for name in NEEDS if name in KINDS or "seed" in glowmap.METHODS[name].parameters]
)
# CAM wants the layer that is pooled into the head, and those that divide by a channel's sum one without signs.
AFTER_RELU = {"cam", "xgrad_cam", "grad_cam_pp", "smooth_grad_cam_pp"}


def layer_for(method):
    return "features.4" if method in AFTER_RELU else "features.3"


@every_method
@pytest.mark.parametrize("training", [False, True])
def test_all_is_given_back(method, training):
    model = Classifier().train(training)
    model.features[1].eval()  # modes differ from module to module
    model.features[0].weight.requires_grad_(False)
    model(images()).sum().backward()  # the user's own gradients
    before, batch = state_of(model), images().requires_grad_()
    kept = batch.detach().clone()
    glowmap.explain(model, batch, target=1, layer=layer_for(method), method=with_parameters(method))
    assert_unchanged(before, state_of(model))
    assert torch.equal(batch, kept)
    assert batch.grad is None
    assert batch.requires_grad


@every_kind
@pytest.mark.parametrize("where", ["features.4", "head"])
def test_all_is_given_back_after_an_exception(method, where):
    model = Classifier().train()
    module = model.get_submodule(where)

    def fail(*_):
        torch.rand(3)
        raise RuntimeError("in the middle")

    handle = module.register_forward_hook(fail)
    before = state_of(model)
    with pytest.raises(GlowmapError, match="in the middle"):
        glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert_unchanged(before, state_of(model))
    handle.remove()


@every_kind
def test_all_is_given_back_after_a_failing_target(method):
    model = Classifier().train()
    before = state_of(model)
    with pytest.raises(GlowmapError, match="no class 9"):
        glowmap.explain(model, images(), target=9, layer=layer_for(method), method=with_parameters(method))
    assert_unchanged(before, state_of(model))


@every_kind
def test_a_frozen_model_gives_the_same_map(method):
    model = Classifier().eval()
    free = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    frozen = glowmap.explain(
        model.requires_grad_(False), images(), target=1, layer=layer_for(method), method=with_parameters(method)
    )
    assert torch.equal(free.raw, frozen.raw)
    assert free.raw.any()


@kind_for_any_head
def test_an_inplace_relu_after_the_layer_spoils_nothing(method):
    plain, inplace = Classifier().eval(), Classifier(inplace=True).eval()
    inplace.load_state_dict(plain.state_dict())
    for layer in ("features.0", "features.3", "features.4"):
        wanted = glowmap.explain(plain, images(), target=1, layer=layer, method=with_parameters(method)).raw
        found = glowmap.explain(inplace, images(), target=1, layer=layer, method=with_parameters(method)).raw
        assert_equal_up_to_rounding(found, wanted)
        assert found.any()


@every_kind
def test_training_mode_is_explained_as_evaluation_and_said(method):
    model = Classifier()
    model(images())  # running statistics that differ from the batch's
    wanted = glowmap.explain(model.eval(), images(), target=1, layer=layer_for(method), method=with_parameters(method))
    found = glowmap.explain(model.train(), images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert torch.equal(found.raw, wanted.raw)
    assert "training mode" in found.cautions[0]
    assert found.cautions[1:] == wanted.cautions


@every_kind
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_under_no_grad_get_the_same_map(method, mode):
    model = Classifier().eval()
    wanted = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    with mode():
        found = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
        assert not torch.is_grad_enabled()
    assert torch.equal(found.raw, wanted.raw)


@every_kind
def test_a_model_that_writes_into_its_input_leaves_the_callers_alone(method):
    class Shifting(Classifier):
        def forward(self, images):
            return super().forward(images.sub_(0.5).mul_(2))

    batch = images()
    kept = batch.clone()
    found = glowmap.explain(Shifting().eval(), batch, target=1, layer=layer_for(method), method=with_parameters(method))
    assert torch.equal(batch, kept)
    assert found.raw.any()


@kind_or_random
def test_random_draws_of_the_model_leave_the_global_generator_alone(method):
    class Noisy(Classifier):
        def forward(self, images):
            return super().forward(images + torch.randn_like(images))

    model = Noisy().eval()
    first = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    again = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert torch.equal(first.raw, again.raw)


@every_kind
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


@every_kind
def test_nothing_is_kept(method):
    """No graph, no activations, no model: only what the explanation shows."""
    gc.freeze()  # what the libraries hold need not be searched again
    model = Classifier().eval()
    found = glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert not found.raw.requires_grad
    assert not found.scores.requires_grad
    assert not found.heatmap.requires_grad
    gone = weakref.ref(model)
    del model
    gc.collect()
    gc.unfreeze()
    assert gone() is None


@plain_kind
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


@kind_for_any_head
def test_a_batch_of_a_dense_model_is_its_images_one_by_one(method):
    model, batch, pixels = Segmenter().eval(), images(3), glowmap.targets.Pixels(1, torch.ones(16, 20))
    options = {"target": pixels, "layer": "encoder.2", "method": with_parameters(method)}
    together = glowmap.explain(model, batch, **options)
    for i in range(3):
        alone = glowmap.explain(model, batch[i : i + 1], **options)
        span = float(alone.raw.abs().max())
        torch.testing.assert_close(together.raw[i : i + 1], alone.raw, rtol=1e-4, atol=1e-5 * span + 1e-12)
        torch.testing.assert_close(together.heatmap[i : i + 1], alone.heatmap, rtol=0, atol=1e-3)


@plain_kind
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


@every_kind
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


@every_kind
def test_threads_that_share_a_model_take_turns(method):
    model = Classifier().train()
    before = state_of(model)
    batches = [images(seed=seed) for seed in range(4)]
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
    assert_unchanged(before, state_of(model))


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


@every_kind
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
    before = state_of(model)
    glowmap.explain(model, images(), target=1, layer=layer_for(method), method=with_parameters(method))
    assert_unchanged(before, state_of(model))
    assert model.cache is None


@every_kind
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


@kind_for_any_head
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
