"""The methods of the whole network against their papers' equations, and the evidence that they are made of."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import glowmap
import glowmap.evidence.rescoring
import papers.whole_network  # noqa: F401 - registers the twins
from glowmap.capture import BiasGradients
from glowmap.errors import MethodError, ModelError
from papers.twins import TWINS

SIZES = {1: (7,), 2: (6, 4), 3: (4, 3, 5)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
TARGET = 1
in_1d_2d_and_3d = pytest.mark.parametrize("axes", [1, 2, 3])


class Rectified(nn.Module):
    """Two convolutions with a batch norm between them, and two linear layers on all their cells."""

    def __init__(self, axes=2, relu=F.relu):
        super().__init__()
        self.conv1 = CONVOLUTIONS[axes](3, 4, 3, 2, 1)
        self.norm = BATCH_NORMS[axes](4)
        self.conv2 = CONVOLUTIONS[axes](4, 5, 3, 1, 1)
        self.cells = int(np.prod([(side + 1) // 2 for side in SIZES[axes]]))
        self.linear1 = nn.Linear(5 * self.cells, 6)
        self.linear2 = nn.Linear(6, 3)
        self.relu = relu
        for layer in (self.conv1, self.conv2, self.linear1, self.linear2):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.3)
        for values in (self.norm.running_mean, self.norm.bias):
            nn.init.normal_(values, std=0.3)
        for values in (self.norm.running_var, self.norm.weight):
            nn.init.uniform_(values, 0.5, 2)

    def forward(self, images):
        maps = self.relu(self.norm(self.conv1(images)))
        maps = self.relu(self.conv2(maps))
        return self.linear2(self.relu(self.linear1(maps.flatten(1))))


class Smooth(Rectified):
    """The same without a kink, so that integrals are exact."""

    def __init__(self, axes=2):
        super().__init__(axes, torch.tanh)


def pictures(axes=2, batch=3):
    return torch.randn(batch, 3, *SIZES[axes], generator=torch.Generator().manual_seed(5)).double()


def steps_of(model, image):
    """The network as dense matrices, from its layers' linear parts and, apart from them, what each adds."""
    norm = model.norm
    shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
    added = {"conv1": model.conv1.bias, "norm": shift, "conv2": model.conv2.bias}
    added |= {"linear1": model.linear1.bias, "linear2": model.linear2.bias}
    steps, shape = [], tuple(image.shape)
    for name, rectified in (("conv1", 0), ("norm", 1), ("conv2", 1), ("linear1", 1), ("linear2", 0)):
        layer, shape = getattr(model, name), shape if "conv" in name or name == "norm" else (np.prod(shape),)
        units = torch.eye(int(np.prod(shape))).double().reshape(-1, *shape)
        with torch.no_grad():
            nothing = layer(torch.zeros_like(units[:1]))
            columns = (layer(units) - nothing).flatten(1)
        out = tuple(nothing.shape[1:])
        bias = added[name].detach().reshape(-1, *[1] * (len(out) - 1)).expand(out).flatten()
        steps += [(columns.T.numpy(), bias.numpy(), out), *["relu"] * rectified]
        shape = out
    return steps


def gradient_of(model):
    def gradient(x):
        image = torch.from_numpy(x)[None].requires_grad_()
        return torch.autograd.grad(model(image)[0, TARGET], image)[0][0].numpy()

    return gradient


def explained(model, batch, method, **parameters):
    method = glowmap.METHODS[method].with_parameters(**parameters)
    return glowmap.explain(model.double().eval(), batch, target=TARGET, layer="conv2", method=method)


def assert_each_is(found, batch, twin):
    assert found.raw.shape == (len(batch), *batch.shape[2:])
    for image, raw in zip(batch, found.raw, strict=True):
        wanted = twin(image)
        np.testing.assert_allclose(raw, wanted, rtol=1e-9, atol=1e-12)
        assert np.ptp(wanted) > 1e-3


@in_1d_2d_and_3d
def test_input_gradient_is_its_papers_equation(axes):
    model, batch = Smooth(axes), pictures(axes)
    found = explained(model, batch, "input_gradient")
    assert_each_is(found, batch, lambda image: TWINS["input_gradient"](gradient_of(model)(image.numpy())))


@in_1d_2d_and_3d
def test_integrated_gradients_is_its_papers_equation(axes):
    model, batch = Smooth(axes), pictures(axes, 2)
    found = explained(model, batch, "integrated_gradients", baseline=0.25)
    assert_each_is(found, batch, lambda image: TWINS["integrated_gradients"](image.numpy(), 0.25, gradient_of(model)))


@pytest.mark.parametrize("baseline", [0.0, -1.5])
def test_integrated_gradients_add_up_to_the_difference_of_the_scores(baseline):
    model, batch = Smooth(), pictures()
    found = explained(
        model, batch, "integrated_gradients", baseline=baseline, steps=64
    )  # 32 leave 1e-7 on the longer way
    difference = found.scores - model(torch.full_like(batch, baseline))[:, TARGET]
    torch.testing.assert_close(found.raw.sum((1, 2)), difference.detach(), rtol=1e-9, atol=1e-12)


def test_one_step_is_the_gradient_half_way():
    model, batch = Smooth(), pictures()
    found = explained(model, batch, "integrated_gradients", steps=1, baseline=1.0)
    for image, raw in zip(batch.numpy(), found.raw, strict=True):
        np.testing.assert_allclose(raw, ((image - 1) * gradient_of(model)((image + 1) / 2)).sum(0), rtol=1e-9)


def noises(image, samples, seed):
    seeds = torch.randint(2**62, (samples,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [torch.randn(image.shape, generator=torch.Generator().manual_seed(one)).numpy() for one in seeds]


@in_1d_2d_and_3d
def test_smooth_grad_is_its_papers_equation(axes):
    model, batch = Smooth(axes), pictures(axes)
    found = explained(model, batch, "smooth_grad", samples=5, spread=0.3, seed=3)
    twin = TWINS["smooth_grad"]
    assert_each_is(found, batch, lambda image: twin(image.numpy(), 0.3, noises(image, 5, 3), gradient_of(model)))


def test_smooth_grad_without_noise_is_the_gradient():
    model, batch = Smooth(), pictures()
    wanted = explained(model, batch, "input_gradient").raw
    torch.testing.assert_close(explained(model, batch, "smooth_grad", spread=0.0).raw, wanted)
    flat = torch.full_like(batch, 0.5)  # the spread is a share of the range, and there is none
    torch.testing.assert_close(explained(model, flat, "smooth_grad").raw, explained(model, flat, "input_gradient").raw)


def test_a_seed_repeats_itself_and_leaves_the_global_generator_alone():
    model, batch = Smooth(), pictures()
    first = explained(model, batch, "smooth_grad", samples=4, seed=7).raw
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(first, explained(model, batch, "smooth_grad", samples=4, seed=7).raw)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.allclose(first, explained(model, batch, "smooth_grad", samples=4, seed=8).raw)


@pytest.mark.parametrize("method", ["smooth_grad", "integrated_gradients"])
def test_chunks_change_nothing(method, monkeypatch):
    model, batch, found = Smooth(), pictures(), []
    for size in (1, 3, 100):
        monkeypatch.setattr(glowmap.evidence.rescoring, "chunk_size", lambda *_, size=size: size)
        found.append(explained(model, batch, method).raw)
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found[2], found[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("integrated_gradients", {"steps": 0}, "has no 0 steps; give at least 1"),
        ("smooth_grad", {"samples": 0}, "has no 0 samples; give at least 1"),
        ("smooth_grad", {"spread": -0.5}, "spread -0.5 of smooth_grad is negative; give a share"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(method, parameters, message):
    with pytest.raises(MethodError, match=message):
        explained(Smooth(), pictures(), method, **parameters)


@in_1d_2d_and_3d
def test_guided_backprop_is_its_papers_equation(axes):
    model, batch = Rectified(axes), pictures(axes)
    found = explained(model, batch, "guided_backprop")
    steps = steps_of(model, batch[0])
    assert_each_is(found, batch, lambda image: TWINS["guided_backprop"](steps, image.numpy(), TARGET))
    plain = np.stack([gradient_of(model)(image.numpy()).sum(0) for image in batch])
    assert not np.allclose(plain, found.raw, rtol=0.1)


@pytest.mark.parametrize(
    "relu",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        torch.relu,
        torch.relu_,
        torch.Tensor.relu,
        torch.Tensor.relu_,
        lambda maps: F.relu(maps, inplace=True),
        lambda maps: F.hardtanh(maps, 0.0, 1e9),
    ],
    ids=["module", "in place module", "torch", "torch in place", "tensor", "tensor in place", "in place", "clipped"],
)
@pytest.mark.parametrize("method", ["guided_backprop", "guided_grad_cam", "full_grad"])
def test_every_way_to_write_a_relu_is_seen(method, relu):
    model, batch = Rectified(), pictures()
    wanted = explained(model, batch, method)
    model.relu = relu
    found = explained(model, batch, method)
    torch.testing.assert_close(found.raw, wanted.raw, rtol=1e-12, atol=0)
    assert found.cautions == wanted.cautions


def test_a_relu_of_a_part_in_place_is_guided():
    def relu_by_halves(maps):
        maps[:, :2].relu_()
        maps[:, 2:].relu_()
        return maps

    model, batch = Rectified(), pictures()
    wanted = explained(model, batch, "guided_backprop").raw
    model.relu = relu_by_halves
    torch.testing.assert_close(explained(model, batch, "guided_backprop").raw, wanted, rtol=1e-12, atol=0)


def test_a_clipped_relu_is_guided_between_its_bounds():
    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv2 = nn.Conv1d(1, 1, 1, bias=False)
            self.conv2.weight.data.fill_(1.0)
            self.relu6 = nn.ReLU6()

        def forward(self, images):
            signs = torch.tensor([2.0, 2.0, 2.0, -2.0]).to(images)
            score = (self.relu6(self.conv2(images))[:, 0] * signs).sum(1)
            return torch.stack([score, score], 1)

    found = explained(Clipped(), torch.tensor([[[-1.0, 3.0, 7.0, 3.0]]]).double(), "guided_backprop")
    assert found.raw.tolist() == [[0.0, 2.0, 0.0, 0.0]]


def test_without_a_relu_nothing_is_guided_and_that_is_an_error():
    model, batch = Smooth(), pictures()
    for method in ("guided_backprop", "guided_grad_cam"):
        with pytest.raises(MethodError, match="no ReLU ran on the way from the input of Smooth, so .*; use input_grad"):
            explained(model, batch, method)
    model.relu = F.gelu
    with pytest.raises(MethodError, match=r"no ReLU ran .* of Smooth \(it has gelu\)"):
        explained(model, batch, "guided_backprop")


def test_activations_that_are_not_guided_are_named():
    model, batch = Rectified(), pictures()
    assert explained(model, batch, "guided_backprop").cautions == ()
    model.linear1 = nn.Sequential(model.linear1, nn.SiLU(), nn.LeakyReLU())
    (caution,) = explained(model, batch, "guided_backprop").cautions
    assert caution == "only ReLUs are guided; through silu, leaky_relu of Rectified the gradient goes as it is"


@in_1d_2d_and_3d
def test_guided_grad_cam_is_its_papers_equation(axes):
    model, batch = Rectified(axes), pictures(axes)
    found = explained(model, batch, "guided_grad_cam")
    steps, kept = steps_of(model, batch[0]), []

    def keep(_module, _inputs, output):
        kept.append(output)

    with model.conv2.register_forward_hook(keep):
        score = model(batch)[:, TARGET].sum()
    (slopes,) = torch.autograd.grad(score, kept[0])
    for image, raw, A, G in zip(batch.numpy(), found.raw, kept[0].detach().numpy(), slopes.numpy(), strict=True):
        wanted = TWINS["guided_grad_cam"](A, G, steps, image, TARGET)
        np.testing.assert_allclose(raw, wanted, rtol=1e-9, atol=1e-12)
    assert (found.raw != 0).any()


@in_1d_2d_and_3d
def test_full_grad_is_its_papers_equation(axes):
    model, batch = Rectified(axes), pictures(axes, 2)
    found = explained(model, batch, "full_grad")
    steps = steps_of(model, batch[0])
    assert_each_is(found, batch, lambda image: TWINS["full_grad"](steps, image.numpy(), TARGET))
    assert found.cautions == ()


class Everything(nn.Module):
    """All kinds of operations that add something, piecewise linear but for the norms."""

    def __init__(self, inplace):
        super().__init__()
        self.relu = nn.ReLU(inplace)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.group, self.instance = nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True)
        self.batch = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 6, 2, 2)
        self.layer, self.shared = nn.LayerNorm(6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 2, bias=False)
        self.register_buffer("mean", torch.tensor([0.3, -0.2, 0.1])[:, None, None])
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.normal_(parameter)
        nn.init.normal_(self.batch.running_mean)

    def forward(self, images):
        maps = 1.5 - (images - self.mean)
        maps += 0.25
        maps[:, :2].sub_(0.75)  # a view of it alone
        maps = torch.add(self.mean, torch.rsub(maps, 2.0, alpha=3.0), alpha=0.5)
        maps = self.relu(self.group(self.conv(maps)))
        maps = maps + self.relu(self.instance(F.max_pool2d(self.up(maps), 2)))
        last = self.layer(self.batch(maps).permute(0, 2, 3, 1))
        last = self.relu(self.shared(self.relu(self.shared(last))))
        return self.head(last.mean((1, 2)))


def terms_of(model, images):
    model.requires_grad_(False)
    images = images.clone().requires_grad_()
    with BiasGradients() as biases:
        scores = model(images.clone())[:, TARGET]
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    return [images.detach() * gradient, *biases.terms(len(images))], scores


@pytest.mark.parametrize("inplace", [False, True])
def test_everything_that_is_added_is_found(inplace):
    """The paper's completeness (its proposition 1): the terms add up to the score."""
    terms, scores = terms_of(Everything(inplace).double().eval(), pictures(2))
    torch.testing.assert_close(sum(term.flatten(1).sum(1) for term in terms), scores, rtol=1e-10, atol=1e-10)
    assert len(terms) == 15  # the image, six sums, two convolutions, four norms, a linear layer that runs twice


def test_a_norm_by_the_batch_mixes_images_and_is_complete_for_all_together():
    model = Rectified()
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)
    terms, scores = terms_of(model.double().eval(), pictures())
    torch.testing.assert_close(sum(term.sum() for term in terms), scores.sum(), rtol=1e-10, atol=1e-10)


def test_complete_in_float32_for_a_piecewise_linear_network():
    model, batch = Rectified().eval(), pictures().float()
    terms, scores = terms_of(model, batch)
    assert [tuple(term.shape[1:]) for term in terms] == [(3, 6, 4), (4, 3, 2), (4, 3, 2), (5, 3, 2), (6,), (3,)]
    torch.testing.assert_close(sum(term.flatten(1).sum(1) for term in terms), scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms[-1], model.linear2.bias * torch.tensor([0.0, 1.0, 0.0]).expand(3, 3))


def test_channels_last_terms_are_laid_out_as_maps():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, images):
            rows = torch.arange(6.0).to(images)[:, None, None]
            return (self.linear(images.permute(0, 2, 3, 1)) * rows).sum((1, 2))

    model = Last().eval()
    terms, _ = terms_of(model, pictures().float())
    wanted = torch.zeros(3, 2, 6, 4)
    wanted[:, TARGET] = model.linear.bias[TARGET] * torch.arange(6.0)[:, None]
    torch.testing.assert_close(terms[1], wanted)


def test_a_network_that_adds_nothing_has_the_images_term_alone():
    model, batch = nn.Sequential(nn.Flatten(), nn.Linear(72, 3, bias=False)), pictures()
    found = glowmap.explain(model.double().eval(), batch, target=TARGET, method="full_grad")
    strength = (batch * model[1].weight[TARGET].detach().reshape(3, 6, 4)).abs()
    low, high = strength.flatten(1).amin(1), strength.flatten(1).amax(1)
    wanted = ((strength - low[:, None, None, None]) / (high - low)[:, None, None, None]).sum(1)
    torch.testing.assert_close(found.raw, wanted)


def test_what_is_the_same_everywhere_counts_as_nothing():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.AvgPool1d(4), nn.Linear(1, 2)).double().eval()
    model[0].weight.data.fill_(1.0)
    found = glowmap.explain(model, torch.ones(1, 1, 2, 2).double(), target=0, method="full_grad")
    assert found.raw.tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_a_sum_that_falls_short_is_told():
    model, batch = Smooth(), pictures()
    found = explained(model, batch, "full_grad")
    terms, _ = terms_of(model, batch)
    sums = sum(term.flatten(1).sum(1) for term in terms)
    assert len(found.cautions) == 3
    for i, caution in enumerate(found.cautions):
        told = f"image {i}: the terms of full_grad add up to {float(sums[i]):.4g}, and the score is "
        assert caution.startswith(told + f"{float(found.scores[i]):.4g}; the network is not piecewise linear")
    model.relu = lambda maps: F.relu(maps) * 1.0
    assert explained(model, batch, "full_grad").cautions == ()


@pytest.mark.parametrize(("method", "last"), [("guided_backprop", 1), ("full_grad", 1), ("guided_grad_cam", 2)])
def test_nothing_stays_switched_on_after_an_exception(method, last):
    model, batch, runs = Rectified(), pictures(), []

    def fail_the_last_time(*_):
        runs.append(1)
        if len(runs) == last:
            raise RuntimeError("in the middle")

    with (
        model.linear1.register_forward_hook(fail_the_last_time),
        pytest.raises(ModelError, match="in the middle"),
    ):
        explained(model, batch, method)
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("method", ["guided_backprop", "full_grad", "guided_grad_cam"])
def test_half_precision(method):
    model, batch = Rectified(), pictures()
    wanted = explained(model, batch, method)
    found = glowmap.explain(
        model.to(torch.bfloat16), batch.to(torch.bfloat16), target=TARGET, layer="conv2", method=method
    )
    assert found.raw.dtype == torch.float32
    assert found.cautions == ()
    torch.testing.assert_close(found.raw.double(), wanted.raw, rtol=0, atol=0.1 * float(wanted.raw.abs().max()))
