"""Models that are wrapped, compiled, checkpointed or cast: the maps are the plain model's, and all is given back."""

import copy
import threading
import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

import glowmap
from closeness import assert_equal_up_to_rounding
from glowmap.errors import ModelError
from model_state import assert_unchanged, state_of
from tiny_models.convolutional import Classifier, images, with_parameters

METHODS = ["grad_cam", "eigen_cam", "ablation_cam", "integrated_grad_cam", "input_gradient", "occlusion"]


def raw(model, layer="features.3", method="grad_cam", given=None):
    before = state_of(model)
    given = images(2) if given is None else given
    found = glowmap.explain(model, given, target=1, layer=layer, method=with_parameters(method)).raw
    assert_unchanged(before, state_of(model))
    return found


def assert_maps_of(plain, model, layer="features.3", **asked):
    wanted = raw(plain, **asked)
    torch.testing.assert_close(raw(model, layer, **asked), wanted, rtol=1e-3, atol=1e-6)
    assert wanted.abs().max() > 1e-5


# -- gradient checkpointing --------------------------------------------------------------------------------------------


class Checkpointed(Classifier):
    """Computes its features again in the backward pass, and its head within an inner checkpoint."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.runs = reentrant, 0

    def forward(self, pictures):
        def features(x):
            self.runs += 1
            return checkpoint(self.features, x, use_reentrant=self.reentrant)

        checkpoint = torch.utils.checkpoint.checkpoint
        maps = checkpoint(features, pictures, use_reentrant=self.reentrant)
        return self.head(maps.mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_models_give_the_maps_of_those_without(reentrant, method):
    model, plain = Checkpointed(reentrant).eval(), Classifier().eval()
    plain.load_state_dict(model.state_dict())
    for layer in ("features.3", "features"):
        wanted = raw(plain, layer, method)
        torch.testing.assert_close(raw(model, layer, method), wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_goes_on_after_the_call_also_one_that_failed(reentrant):
    model = Checkpointed(reentrant).eval()
    own = dict(vars(torch.utils.checkpoint))
    glowmap.explain(model, images(), target=1, layer="features.3")
    with pytest.raises(ModelError):
        glowmap.explain(model, torch.ones(2, 4, 16, 20), target=1, layer="features.3")
    assert {name: vars(torch.utils.checkpoint)[name] is value for name, value in own.items()} == dict.fromkeys(
        own, True
    )
    model.runs = 0
    model(images().requires_grad_()).sum().backward()
    assert model.runs == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_another_thread_goes_on_checkpointing_meanwhile(reentrant):
    """A training that runs beside must not run out of memory because somebody asks about a picture."""
    training, seen = Checkpointed(reentrant), []

    class Slow(Classifier):
        def forward(self, pictures):
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=step)
                other.start()
                other.join()
            return super().forward(pictures)

    def step():
        training.runs = 0
        training(images().requires_grad_()).sum().backward()
        seen.append((training.runs, training.features[0].weight.grad.abs().sum() > 0))

    glowmap.explain(Slow().eval(), images(), target=1, layer="features.3")
    assert seen == [(2, True)]


def test_timms_checkpointing():
    timm = pytest.importorskip("timm")
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    for method in ("grad_cam", "ablation_cam"):
        asked = {"method": method, "given": torch.randn(1, 3, 32, 32)}
        torch.testing.assert_close(raw(model, "blocks.0", **asked), raw(plain, "blocks.0", **asked))
    assert model.grad_checkpointing


def test_transformers_checkpointing_and_training_mode():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    plain = transformers.ViTForImageClassification(config).eval()
    model = copy.deepcopy(plain).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the name changes from version to version
        model.gradient_checkpointing_enable()
        enabled = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    layer = next(name for name, _ in model.named_modules() if name.endswith(".0.layernorm_before"))
    wanted = raw(plain, layer, given=torch.ones(1, 3, 32, 32))
    assert_equal_up_to_rounding(raw(model, layer, given=torch.ones(1, 3, 32, 32)), wanted)
    assert enabled
    assert all(module.gradient_checkpointing for module in enabled)
    assert wanted.any()


def test_the_checkpointing_of_sharded_models():
    wrappers = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    plain = Classifier().eval()
    for way in wrappers.CheckpointImpl:
        model = copy.deepcopy(plain)
        model.features = wrappers.checkpoint_wrapper(model.features, checkpoint_impl=way)
        assert_maps_of(plain, model, model.features._checkpoint_wrapped_module[3])


def test_threads_that_explain_at_once_leave_nothing_changed():
    own, stance = dict(vars(torch.utils.checkpoint)), torch._dynamo.eval_frame._stance.stance
    both, maps = threading.Barrier(2), {}

    class Meeting(Checkpointed):
        def forward(self, pictures):
            both.wait(timeout=60)  # each begins before the other has ended
            answer = super().forward(pictures)
            if len(pictures) == 3:
                both.wait(timeout=60)
            return answer

    class Late(Checkpointed):
        def forward(self, pictures):
            both.wait(timeout=60)
            both.wait(timeout=60)  # until the other has run
            return super().forward(pictures)

    models = {"early": Meeting(True).eval(), "late": Late(False).eval()}

    def ask(name):
        maps[name] = glowmap.explain(models[name], images(3), target=1, layer="features.3").raw

    threads = [threading.Thread(target=ask, args=(name,)) for name in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, model in models.items():
        plain = Classifier().eval()
        plain.load_state_dict(model.state_dict())
        assert_equal_up_to_rounding(maps[name], raw(plain, given=images(3)))
    assert all(vars(torch.utils.checkpoint)[name] is value for name, value in own.items())
    assert torch._dynamo.eval_frame._stance.stance == stance


# -- torch.compile -----------------------------------------------------------------------------------------------------


class Counting:
    """A backend that counts what is compiled, and compiles nothing."""

    def __init__(self):
        self.compiled = self.ran = 0

    def __call__(self, graph, _inputs):
        self.compiled += 1

        def run(*arguments):
            self.ran += 1
            return graph.forward(*arguments)

        return run


def compiled_whole(model, backend):
    return torch.compile(model, backend=backend)


def compiled_part(model, backend):
    model.features = torch.compile(model.features, backend=backend)
    return model


def compiled_in_place(model, backend):
    model.compile(backend=backend)
    return model


def compiled_part_in_place(model, backend):
    model.features.compile(backend=backend)
    return model


def compiled_function(model, backend):
    model.forward = torch.compile(model.forward, backend=backend)
    return model


@pytest.fixture
def no_dynamo_left():
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("no_dynamo_left")
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    "way", [compiled_whole, compiled_part, compiled_in_place, compiled_part_in_place, compiled_function]
)
def test_compiled_models_are_run_as_they_are_written_and_given_back(way, warm):
    torch._dynamo.reset()
    plain, backend = Classifier().eval(), Counting()
    model = way(copy.deepcopy(plain), backend)
    with torch.no_grad():
        wanted = plain(images(2))
        if warm:
            model(images(2))
    compiled = backend.compiled
    convolution = next(module for module in model.modules() if getattr(module, "out_channels", 0) == 8)
    for method in METHODS:
        assert_maps_of(plain, model, convolution, method=method)
    assert backend.compiled == compiled
    with torch.no_grad():  # what was compiled before is what runs afterwards, with none of our hooks in it
        assert_equal_up_to_rounding(model(images(2)), wanted)
    assert backend.compiled == 1
    assert backend.ran == 1 + warm
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.usefixtures("no_dynamo_left")
def test_a_compiled_part_is_a_layer_and_the_stance_is_given_back_after_a_failure():
    plain, backend = Classifier().eval(), Counting()
    model = compiled_part(copy.deepcopy(plain), backend)
    torch.testing.assert_close(raw(model, "features"), raw(plain, "features"))
    with torch.compiler.set_stance("eager_on_recompile"):
        with pytest.raises(ModelError):
            glowmap.explain(model, torch.ones(2, 4, 16, 20), layer="features")
        assert torch._dynamo.eval_frame._stance.stance == "eager_on_recompile"


# -- several devices, several processes --------------------------------------------------------------------------------


def named_inside(model, name="features.3"):
    """A wrapped model's part under whatever name it has there."""
    return next(own for own, _ in model.named_modules() if own.endswith(name))


class Wrapping(nn.Module):
    """A model with another wrapped inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pictures):
        return self.inner(pictures)


@pytest.mark.parametrize("method", METHODS)
def test_data_parallel(method):
    plain = Classifier().eval()
    model = Wrapping(nn.DataParallel(copy.deepcopy(plain))).eval()
    assert_maps_of(plain, model, "inner.module.features.3", method=method)


def test_data_parallel_takes_one_device_while_it_is_asked():
    """Replicas on several devices run in threads of their own, where no hook of ours listens."""
    seen = []

    class Parallel(nn.DataParallel):
        def forward(self, pictures):
            seen.append(list(self.device_ids))
            return self.module(pictures)

    model = Wrapping(Parallel(Classifier())).eval()
    model.inner.device_ids = [0, 1]
    glowmap.explain(model, images(), target=1, layer="inner.module.features.3")
    with pytest.raises(ModelError):
        glowmap.explain(model, torch.ones(2, 4, 16, 20), layer="inner.module.features.3")
    assert seen == [[0], [0]]
    assert model.inner.device_ids == [0, 1]


@pytest.fixture
def alone(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_distributed_data_parallel_is_explained_between_two_steps_of_its_training():
    plain = Classifier()
    model, beside = (nn.parallel.DistributedDataParallel(copy.deepcopy(plain)) for _ in range(2))
    for step in range(3):
        for one in (model, beside):
            one(images(2, seed=step)).square().mean().backward()
        wanted = [parameter.grad.clone() for parameter in beside.parameters()]
        for method in ("grad_cam", "ablation_cam", "occlusion"):
            found = raw(Wrapping(model), named_inside(Wrapping(model)), method)
            assert_equal_up_to_rounding(found, raw(plain_of(model), method=method))
        for parameter, gradient in zip(model.parameters(), wanted, strict=True):
            assert_equal_up_to_rounding(parameter.grad, gradient)


def plain_of(model):
    plain = Classifier().eval()
    plain.load_state_dict(model.module.state_dict())
    return plain


@pytest.mark.usefixtures("alone")
def test_fully_sharded_models():
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    plain = Classifier().eval()
    model = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fsdp.fully_shard(model.features)
        fsdp.fully_shard(model)
        for method in ("grad_cam", "ablation_cam"):
            found = glowmap.explain(model, images(2), target=1, layer="features.3", method=method).raw
            assert_equal_up_to_rounding(found, raw(plain, method=method))
        wrapped = fsdp.FullyShardedDataParallel(
            copy.deepcopy(plain), device_id=torch.device("cpu"), use_orig_params=True
        )
        found = glowmap.explain(wrapped, images(2), target=1, layer=named_inside(wrapped)).raw
    assert_equal_up_to_rounding(found, raw(plain))


# -- precision, memory, frozen weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "rise"])
def test_autocast_around_the_call_and_inside_the_model(method):
    class Inside(Classifier):
        def forward(self, pictures):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(pictures)

    plain, inside = Classifier().eval(), Inside().eval()
    inside.load_state_dict(plain.state_dict())
    wanted = raw(plain, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = raw(plain, method=method)
        assert torch.is_autocast_enabled("cpu")
    within = raw(inside, method=method)
    assert around.dtype == torch.float32
    # the same numbers run through the same operations, but for where the score is made
    torch.testing.assert_close(around, within, rtol=0.1, atol=0.02 * float(wanted.abs().max()))
    correlation = float(torch.corrcoef(torch.stack([around.flatten(), wanted.flatten()]))[0, 1])
    assert correlation > (0.8 if method == "occlusion" else 0.95)
    assert not torch.equal(around, wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models(dtype, method):
    plain = Classifier().eval()
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(dtype).float()  # the same weights in either precision
    model, given = copy.deepcopy(plain).to(dtype), images(2).to(dtype)
    found, wanted = raw(model, method=method, given=given), raw(plain, method=method, given=given.float())
    assert found.dtype == torch.float32
    correlation = float(torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1])
    assert correlation > (0.6 if method == "occlusion" else 0.98)


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_memory(method):
    plain = Classifier().eval()
    model = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    assert_maps_of(plain, model, method=method)
    given = images(2).to(memory_format=torch.channels_last)
    torch.testing.assert_close(raw(model, method=method, given=given), raw(plain, method=method), rtol=1e-3, atol=1e-6)
    assert model.features[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_frozen_models_and_parts_stay_frozen():
    plain = Classifier().eval()
    wanted = raw(plain)
    assert_equal_up_to_rounding(raw(copy.deepcopy(plain).requires_grad_(False)), wanted)
    half = copy.deepcopy(plain)
    half.features.requires_grad_(False)
    assert_equal_up_to_rounding(raw(half), wanted)
    assert [parameter.requires_grad for parameter in half.parameters()] == [False] * 6 + [True] * 2
