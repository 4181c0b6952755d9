"""The methods that ask again against their papers' equations, and what asking again must keep."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import glowmap
from glowmap import targets
from glowmap.errors import MethodError
from glowmap.methods import METHODS
from papers.perturbation import up
from papers.twins import TWINS
from tiny_models.convolutional import Segmenter, images

QUICK = {
    "score_cam": {},
    "ss_cam": {"samples": 3},
    "is_cam": {"steps": 4},
    "gscore_cam": {"channels": 3},
    "group_cam": {"groups": 3, "blur": 2},
    "ablation_cam": {},
    "recipro_cam": {},
    "opti_cam": {"steps": 4},
    "rise": {"masks": 70, "cells": 3},
    "d_rise": {"masks": 70, "cells": 4},
    "occlusion": {"window": 3, "stride": 2},
}
SIZES = [(7, 9), (12,), (4, 5, 6)]
every_size = pytest.mark.parametrize("size", SIZES, ids=["2D", "1D", "3D"])
every_method = pytest.mark.parametrize("name", QUICK)


class Bent(nn.Module):
    """A coarser layer with values of both signs, and a head whose answer bends and differs from cell to cell."""

    def __init__(self, size, channels=6):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
        self.conv = conv(3, channels, 3, 2, 1)
        self.head = nn.Linear(channels * int(np.prod([(side + 1) // 2 for side in size])), 4)
        self.head.weight.data *= 4

    def forward(self, images):
        return self.answer(self.conv(images))

    def answer(self, maps):
        return self.head(torch.tanh(maps).flatten(1)) + torch.sin(maps.flatten(1).sum(1, keepdim=True))


def made(size):
    batch = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    return Bent(size).double().eval(), batch


def explained(model, batch, name, layer="conv", target=1, **parameters):
    return glowmap.explain(model, batch, target=target, layer=layer, method=METHODS[name].with_parameters(**parameters))


class Asked:
    """What the twins ask for about one image: the maps, their gradients, and functions of images and of maps."""

    def __init__(self, model, image, target=1):
        self.model, self.target, self.x = model, target, image.numpy()
        maps = model.conv(image[None]).detach().requires_grad_()
        (gradients,) = torch.autograd.grad(model.answer(maps)[0, target], maps)
        self.A, self.G = maps.detach()[0].numpy(), gradients[0].numpy()

    def f(self, x):
        return self.model(torch.from_numpy(x)[None])[0, self.target].item()

    def head(self, A):
        return self.model.answer(torch.from_numpy(A)[None])[0, self.target].item()

    def slope(self, x):
        image = torch.from_numpy(x).requires_grad_()
        return torch.autograd.grad(self.model(image[None])[0, self.target], image)[0].numpy()


def assert_twin(raws, batch, model, twin):
    """Compare image by image, and make sure that there was something to compare."""
    for image, raw in zip(batch, raws, strict=True):
        wanted = twin(Asked(model, image))
        assert np.ptp(wanted) > 1e-3
        np.testing.assert_allclose(raw, wanted, rtol=1e-9, atol=1e-11)


@every_size
@pytest.mark.parametrize("corners", [False, True])
def test_score_cam(size, corners):
    model, batch = made(size)
    found = explained(model, batch, "score_cam", corners=corners)
    assert_twin(found.raw, batch, model, lambda one: TWINS["score_cam"](one.A, one.x, one.f, corners))


def test_score_cams_two_kinds_of_mask_differ():
    model, batch = made((7, 9))
    one, other = (explained(model, batch, "score_cam", corners=corners).raw for corners in (False, True))
    assert float((one - other).abs().max()) > 1e-3


@every_size
def test_ss_cam(size):
    model, batch = made(size)
    noises = 0.5 * torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(5))[:, 0].double().numpy()
    found = explained(model, batch, "ss_cam", samples=3, spread=0.5, seed=5)
    assert_twin(found.raw, batch, model, lambda one: TWINS["ss_cam"](one.A, one.x, one.f, noises))


@every_size
def test_is_cam(size):
    model, batch = made(size)
    found = explained(model, batch, "is_cam", steps=4)
    assert_twin(found.raw, batch, model, lambda one: TWINS["is_cam"](one.A, one.x, one.f, 4))


def test_is_cam_shows_no_image_brighter_than_the_image():
    model, batch = made((7, 9))
    shown = []
    model.conv.register_forward_pre_hook(lambda _module, inputs: shown.append(inputs[0].abs().amax(0)))
    explained(model, batch[:1], "is_cam")
    assert len(shown) > 1
    assert all(bool((seen <= batch[0].abs() + 1e-12).all()) for seen in shown)


@every_size
@pytest.mark.parametrize("channels", [2, 300])
def test_gscore_cam(size, channels):
    model, batch = made(size)
    found = explained(model, batch, "gscore_cam", channels=channels)
    assert_twin(found.raw, batch, model, lambda one: TWINS["gscore_cam"](one.A, one.x, one.G, one.f, channels))


@every_size
@pytest.mark.parametrize(
    ("groups", "members", "threshold"),
    [
        (3, [[0, 1], [2, 3], [4, 5]], 0.7),
        (32, [[0], [1], [2], [3], [4], [5]], 0.4),
        (4, [[0, 1], [2, 3], [4], [5]], 0.0),
    ],
)
def test_group_cam_becomes_the_papers_map_when_it_is_enlarged(size, groups, members, threshold):
    model, batch = made(size)
    found = explained(model, batch, "group_cam", groups=groups, threshold=threshold, blur=2)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    large = F.interpolate(found.raw[:, None], size, mode=mode, align_corners=False)[:, 0]
    assert_twin(large, batch, model, lambda one: TWINS["group_cam"](one.A, one.G, one.x, one.f, members, threshold, 2))


def test_group_cam_of_groups_that_show_nothing_is_zero():
    """No cell lies above the highest, so that every mask is flat."""
    model, batch = made((7, 9))
    assert not explained(model, batch, "group_cam", threshold=1.0).raw.any()


@every_size
def test_ablation_cam_is_the_papers_times_the_score(size):
    model, batch = made(size)
    found = explained(model, batch, "ablation_cam")
    assert_twin(found.raw, batch, model, lambda one: one.head(one.A) * TWINS["ablation_cam"](one.A, one.head))


@pytest.mark.parametrize("score", [-3.0, 0.0])
def test_ablation_cam_does_not_turn_with_the_sign_of_the_score(score):
    """The head's bias adds a constant to the score, with and without a channel: the map stays."""
    model, batch = made((7, 9))
    wanted = explained(model, batch[:1], "ablation_cam").raw
    model.head.bias.data[1] += score - model(batch[:1])[0, 1].item()
    found = explained(model, batch[:1], "ablation_cam")
    assert abs(float(found.scores) - score) < 1e-12
    torch.testing.assert_close(found.raw, wanted, rtol=1e-9, atol=1e-11)


def kernel(size, factors):
    out = np.ones(())
    for _ in size:
        out = np.multiply.outer(out, factors)
    return out


@every_size
@pytest.mark.parametrize(
    ("radius", "factors"), [(0, [1]), (1, [1 / 4, 1 / 2, 1 / 4]), (2, [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16])]
)
def test_recipro_cam(size, radius, factors):
    model, batch = made(size)
    found = explained(model, batch, "recipro_cam", radius=radius)
    assert_twin(found.raw, batch, model, lambda one: TWINS["recipro_cam"](one.A, one.head, kernel(size, factors)))


def test_recipro_cams_window_is_the_papers():
    model, batch = made((7, 9))
    found = explained(model, batch, "recipro_cam")
    assert_twin(found.raw, batch, model, lambda one: TWINS["recipro_cam"](one.A, one.head))


@every_size
def test_opti_cam(size):
    model, batch = made(size)
    found = explained(model, batch, "opti_cam", steps=4, rate=0.3)
    assert_twin(found.raw, batch, model, lambda one: TWINS["opti_cam"](one.A, one.x, one.slope, 4, 0.3))


def test_opti_cam_climbs():
    model, batch = made((7, 9))
    size = batch.shape[2:]

    def score(raw):
        large = F.interpolate(raw[:, None], size, mode="bilinear")
        low, high = large.amin((2, 3), keepdim=True), large.amax((2, 3), keepdim=True)
        return model(batch * (large - low) / (high - low))[:, 1]

    start = score(model.conv(batch).mean(1))
    assert bool((score(explained(model, batch, "opti_cam", steps=30).raw) > start + 0.1).all())


def test_opti_cam_needs_no_gradients_switched_on():
    model, batch = made((7, 9))
    wanted = explained(model, batch, "opti_cam", steps=3).raw
    with torch.no_grad():
        found = explained(model, batch, "opti_cam", steps=3).raw
    with torch.inference_mode():
        inferred = explained(model, batch, "opti_cam", steps=3).raw
    assert torch.equal(found, wanted)
    assert torch.equal(inferred, wanted)


def drawn(size, masks, cells, keep, seed):
    """The grids and shifts that a seed stands for."""
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand(masks, *[cells] * len(size), generator=generator) < keep).double().numpy()
    shifts = [torch.randint(-(-side // cells), (masks,), generator=generator).numpy() for side in size]
    return grids, np.stack(shifts, 1)


@every_size
def test_rise(size):
    model, batch = made(size)
    parameters = {"masks": 9, "cells": 3, "keep": 0.4, "seed": 2}
    found = explained(model, batch, "rise", layer=None, **parameters)
    assert found.layer == "input"
    assert_twin(found.raw, batch, model, lambda one: TWINS["rise"](one.x, one.f, *drawn(size, **parameters), 0.4))


@every_size
def test_d_rise_is_the_papers_over_a_constant(size):
    model, batch = made(size)
    parameters = {"masks": 9, "cells": 4, "keep": 0.6, "seed": 2}
    found = explained(model, batch, "d_rise", layer=None, **parameters)
    twin = TWINS["d_rise"]
    assert_twin(found.raw, batch, model, lambda one: twin(one.x, one.f, *drawn(size, **parameters)) / (9 * 0.6))


def test_rise_with_everything_kept_tells_no_place_from_another():
    model, batch = made((7, 9))
    found = explained(model, batch, "rise", layer=None, masks=5, keep=1.0)
    assert float(found.raw.abs().max()) < 1e-12 * float(found.scores.abs().max())


class Patch(nn.Module):
    """Sees the mean of two rows and three columns of the image and nothing else."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, images):
        seen = self.layer(images)[:, :, 4:6, 8:11].mean((1, 2, 3))
        return torch.stack([seen, -seen], 1)


@pytest.mark.parametrize(("name", "parameters"), [("rise", {}), ("occlusion", {"window": 2, "stride": 1})])
def test_the_heat_lies_where_the_model_looks(name, parameters):
    found = explained(Patch().eval(), torch.ones(1, 3, 12, 16), name, layer=None, target=0, **parameters)
    row, column = divmod(int(found.raw[0].argmax()), 16)
    assert 4 <= row < 6
    assert 8 <= column < 11


@every_size
@pytest.mark.parametrize(
    ("window", "stride", "value"), [(3, 2, 0.0), (2, 2, 0.7), (4, 1, -1.0), (20, 20, 0.0)], ids=str
)
def test_occlusion(size, window, stride, value):
    model, batch = made(size)
    found = explained(model, batch, "occlusion", layer=None, window=window, stride=stride, value=value)
    assert found.layer == "input"
    for image, raw in zip(batch, found.raw, strict=True):
        one = Asked(model, image)
        wanted = TWINS["occlusion"](one.x, one.f, window, stride, value)
        np.testing.assert_allclose(raw, wanted, rtol=1e-9, atol=1e-11)
        assert np.abs(wanted).max() > 1e-3


def test_occlusions_window_is_an_eighth_of_the_shortest_axis_and_moves_by_half():
    model, batch = Patch().double().eval(), torch.randn(1, 3, 35, 48).double()
    found = explained(model, batch, "occlusion", layer=None, target=0)
    wanted = explained(model, batch, "occlusion", layer=None, target=0, window=4, stride=2)
    assert torch.equal(found.raw, wanted.raw)
    assert found.raw.any()


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ss_cam", {"samples": 0}, "samples is 0; give at least 1"),
        ("is_cam", {"steps": 0}, "steps is 0; give at least 1"),
        ("gscore_cam", {"channels": 0}, "channels is 0; give at least 1"),
        ("group_cam", {"groups": 0}, "groups is 0; give at least 1"),
        ("group_cam", {"blur": 0}, "blur is 0; give at least 1"),
        ("group_cam", {"threshold": 70.0}, r"not 70.0; give a number in \[0, 1\]"),
        ("recipro_cam", {"radius": -1}, "radius is -1; give at least 0"),
        ("opti_cam", {"steps": 0}, "steps is 0; give at least 1"),
        ("rise", {"masks": 0}, "masks is 0; give at least 1"),
        ("rise", {"cells": 0}, "cells is 0; give at least 1"),
        ("d_rise", {"keep": 0.0}, r"not 0.0; give a number in \(0, 1\]"),
        ("occlusion", {"window": 0}, "window is 0; give at least 1"),
        ("occlusion", {"window": 3, "stride": 0}, "stride is 0; give at least 1"),
        ("occlusion", {"window": 2, "stride": 3}, "stride of 3 skips pixels between windows of 2; give at most 2"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(name, parameters, message):
    model, batch = made((7, 9))
    with pytest.raises(MethodError, match=message):
        explained(model, batch, name, **parameters)


class Flat(Bent):
    """One channel has the same value in every cell."""

    def forward(self, images):
        return self.answer(self.conv(images))

    def __init__(self, size):
        super().__init__(size)
        self.conv.weight.data[2] = 0


@pytest.mark.parametrize("name", ["score_cam", "ss_cam", "is_cam"])
def test_a_flat_channel_shows_nothing_of_the_image(name):
    model, (_, batch) = Flat((7, 9)).double().eval(), made((7, 9))
    noises = 2.0 * torch.randn(3, 1, 7, 9, generator=torch.Generator().manual_seed(0))[:, 0].double().numpy()
    more = {"score_cam": (), "ss_cam": (noises,), "is_cam": (4,)}[name]
    found = explained(model, batch, name, **QUICK[name])
    assert_twin(found.raw, batch, model, lambda one: TWINS[name](one.A, one.x, one.f, *more))


def test_opti_cam_of_flat_maps_is_their_mean():
    """A mask without contrast has no slope to climb."""
    model, (_, batch) = Bent((7, 9)).double().eval(), made((7, 9))
    model.conv.weight.data.zero_()
    found = explained(model, batch, "opti_cam", steps=3)
    wanted = model.conv.bias.detach().mean().expand(2, 4, 5)
    torch.testing.assert_close(found.raw, wanted, rtol=1e-9, atol=1e-12)


@every_method
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_the_chunk_size_never_changes_a_result(name, rows, monkeypatch):
    model, batch = made((7, 9))
    wanted = explained(model, batch, name, **QUICK[name])
    asked = []
    monkeypatch.setattr("glowmap.evidence.rescoring.chunk_size", lambda *_: asked.append(rows) or rows)
    found = explained(model, batch, name, **QUICK[name])
    assert asked
    torch.testing.assert_close(found.raw, wanted.raw, rtol=1e-9, atol=1e-11)


@every_method
@every_size
def test_a_batch_is_its_images_one_by_one(name, size):
    model, batch = made(size)
    found = explained(model, batch, name, **QUICK[name])
    for image, raw in zip(batch, found.raw, strict=True):
        single = explained(model, image[None], name, **QUICK[name]).raw[0]
        torch.testing.assert_close(raw, single, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["ss_cam", "rise", "d_rise"])
def test_a_seed_repeats_itself_and_touches_no_other(name):
    model, batch = made((7, 9))
    draw = partial(explained, model, batch, name, **QUICK[name])
    before = torch.get_rng_state()
    one, again, other = draw(seed=3).raw, draw(seed=3).raw, draw(seed=4).raw
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, again)
    assert float((one - other).abs().max()) > 1e-6


@every_method
def test_half_precision_is_shown_as_it_is_and_weighed_in_single(name):
    model, batch = made((7, 9))
    seen = []
    model, batch = model.to(torch.bfloat16), batch.to(torch.bfloat16)
    model.conv.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
    found = explained(model, batch, name, **QUICK[name])
    assert found.raw.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}


# What asks about changed maps, against whole passes in which a hook exchanges the layer's output.


class Skipping(nn.Module):
    """A trunk, a skip past the explained layer, a shared activation in place."""

    def __init__(self):
        super().__init__()
        self.trunk, self.act = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace=True)
        self.layer, self.head = nn.Conv2d(6, 6, 3, 1, 1), nn.Linear(6, 4)

    def forward(self, images):
        maps = self.act(self.trunk(images))
        return self.head(self.act(self.layer(maps) + maps).mean((2, 3)))


class Twice(Skipping):
    """Runs the layer twice: its last run is explained, and what came before cannot be handed back."""

    def forward(self, images):
        maps = self.act(self.trunk(images))
        return self.head(torch.tanh(self.layer(self.layer(maps)) + maps).mean((2, 3)))


class Rewriting(Skipping):
    """Writes into what a module before the layer gave, so that handing it back would write into it once more."""

    def forward(self, images):
        maps = self.trunk(images)
        maps += 1
        return self.head(torch.tanh(self.layer(maps) + maps).mean((2, 3)))


def patch_activation(model, image, change):
    """The score of a whole pass in which the layer's last output is changed."""
    outputs = []
    handle = model.layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        model(image)
    handle.remove()
    last, runs = len(outputs), []

    def exchange(_module, _inputs, output):
        runs.append(1)
        return torch.from_numpy(change)[None] if len(runs) == last else output

    handle = model.layer.register_forward_hook(exchange)
    with torch.no_grad():
        score = model(image)[0, 2].item()
    handle.remove()
    return outputs[-1], score


@pytest.mark.parametrize("name", ["ablation_cam", "recipro_cam"])
@pytest.mark.parametrize(("kind", "proven"), [(Skipping, True), (Twice, False), (Rewriting, False)])
def test_resumed_or_not_the_map_is_that_of_whole_passes(name, kind, proven):
    model, batch = kind().double().eval(), images(2, 8, 10).double()
    found = explained(model, batch, name, layer="layer", target=2)
    assert proven != any("running the model from layer 'layer' on" in caution for caution in found.cautions)
    for image, raw, score in zip(batch, found.raw, found.scores, strict=True):
        A, _ = patch_activation(model, image[None], np.zeros((6, 4, 5)))
        A = A[0].numpy()

        def ask(maps, image=image):
            return patch_activation(model, image[None], maps)[1]

        wanted = TWINS[name](A, ask) * (float(score) if name == "ablation_cam" else 1.0)
        assert np.ptp(wanted) > 1e-4
        np.testing.assert_allclose(raw, wanted, rtol=1e-8, atol=1e-10)


# Questions other than a class of a classifier.


def pixels_of(model, batch):
    labels = model(batch)["out"].argmax(1)
    category = int(labels.flatten().mode().values)
    return category, labels == category


@pytest.mark.parametrize("explicit", [True, False])
def test_the_predicted_pixels_stay_while_channels_are_ablated(explicit):
    model, batch = Segmenter().double().eval(), images(2).double()
    category, inside = pixels_of(model, batch)
    assert bool((inside.flatten(1).any(1) & ~inside.flatten(1).all(1)).all())
    question = targets.Pixels(category) if explicit else category
    found = explained(model, batch, "ablation_cam", layer="encoder", target=question)
    moved = 0
    for number, raw in enumerate(found.raw):
        maps = model.encoder(batch[number : number + 1]).detach()

        def logits(maps):
            return F.interpolate(model.head(maps), (16, 20), mode="bilinear", align_corners=False)

        score, wanted = logits(maps)[0, category][inside[number]].sum(), 0
        for k in range(7):
            without = maps.clone()
            without[:, k] = 0
            moved += not torch.equal(logits(without).argmax(1)[0] == category, inside[number])
            wanted = wanted + (score - logits(without)[0, category][inside[number]].sum()) * maps[0, k]
        torch.testing.assert_close(raw, wanted.detach(), rtol=1e-9, atol=1e-9)
    assert moved


@every_method
def test_a_callable_is_asked_again(name):
    """Any function of the output: its map is that of the class it stands for."""
    model, batch = made((7, 9))
    found = explained(model, batch, name, target=lambda output: output[:, 3], **QUICK[name])
    wanted = explained(model, batch, name, target=3, **QUICK[name])
    torch.testing.assert_close(found.raw, wanted.raw, rtol=1e-9, atol=1e-11)
    assert found.raw.any()


@every_method
def test_a_segmentation_model_is_asked_about_a_set_of_pixels(name):
    """A set of pixels asks for the sum of a class's logits there, and so does this function of the output."""
    model, batch = Segmenter().double().eval(), images(2).double()
    mask = torch.zeros(16, 20)
    mask[3:9, 4:13] = 1
    found = explained(model, batch, name, layer="encoder.2", target=targets.Pixels(1, mask), **QUICK[name])
    by_hand = explained(
        model,
        batch,
        name,
        layer="encoder.2",
        target=lambda output: (output["out"][:, 1] * mask).sum((1, 2)),
        **QUICK[name],
    )
    torch.testing.assert_close(found.raw, by_hand.raw, rtol=1e-9, atol=1e-9)
    assert float(found.raw.std()) > 0


def test_the_twins_enlargement_is_one_worked_out_by_hand():
    small = np.array([[0.0, 1.0]])
    assert up(small, (1, 4)).tolist() == [[0.0, 0.25, 0.75, 1.0]]
    assert up(small, (1, 3), corners=True).tolist() == [[0.0, 0.5, 1.0]]
