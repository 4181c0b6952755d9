"""Running on from a layer: the same output as a full pass with the layer's output exchanged, without paying for the trunk."""

import pytest
import torch
from torch import nn

import glowmap
from glowmap.methods import Method
from model_state import assert_unchanged, state_of
from tiny_models.convolutional import images

FACTORS = torch.tensor([1.0, 0.0, 0.5, -1.0, 2.0])


def asking(kept):
    """A method that asks for the scores of the maps times each factor, and keeps what it got."""

    def probe(activations, rescore_maps):
        kept.append(rescore_maps(len(FACTORS), lambda part: activations * factors(activations)[part]))
        return activations.sum(1)

    def factors(maps):
        return FACTORS.reshape(-1, *[1] * (maps.ndim - 1))

    return Method("probe", probe, ("activations", "rescore_maps"), {}, "in tests", "none")


def by_hand(model, batch, layer, target, image):
    """The same scores from full passes, the layer's output exchanged by a hook."""
    module, scores = model.get_submodule(layer), []
    for factor in FACTORS:
        handle = module.register_forward_hook(lambda _module, _inputs, output: output * factor)  # noqa: B023
        with torch.no_grad():
            scores.append(target(model(batch[image : image + 1]))[0])
        handle.remove()
    return torch.stack(scores)


class Counted(nn.Module):
    """Counts how many images went through it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, images):
        self.seen += len(images)
        return self.inner(images)


class Skipping(nn.Module):
    """A shared activation, a skip past the explained layer, an in-place addition: what residual networks are made of."""

    def __init__(self):
        super().__init__()
        self.trunk = Counted(nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6)))
        self.act = nn.ReLU(inplace=True)
        self.first, self.second = nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        maps = self.act(self.trunk(images))
        out = self.act(self.first(maps))
        out = self.second(out)
        out += maps
        return self.head(self.act(out).mean((2, 3)))


@pytest.mark.parametrize("layer", ["trunk", "first", "second"])
def test_running_on_is_a_full_pass_with_the_layers_output_exchanged(layer):
    model, batch, kept = Skipping().eval(), images(3), []
    before = state_of(model)
    found = glowmap.explain(model, batch, target=2, layer=layer, method=asking(kept))
    assert_unchanged(before, state_of(model))
    for image in range(3):
        torch.testing.assert_close(kept[image], by_hand(model, batch, layer, lambda out: out[:, 2], image))
    assert "forward" not in vars(model.get_submodule(layer))
    assert not any("running on" in caution for caution in found.cautions)


def test_the_trunk_is_paid_once():
    model, batch = Skipping().eval(), images(3)
    glowmap.explain(model, batch, target=2, layer="second", method=asking([]))
    assert model.trunk.seen == 3


def test_a_torchvision_network():
    torchvision = pytest.importorskip("torchvision")
    model, batch, kept = torchvision.models.resnet18(weights=None).eval(), torch.randn(2, 3, 64, 64), []
    glowmap.explain(model, batch, target=7, layer="layer3.0.conv2", method=asking(kept))
    wanted = by_hand(model, batch, "layer3.0.conv2", lambda out: out[:, 7], 1)
    torch.testing.assert_close(kept[1], wanted, rtol=1e-4, atol=1e-5)


class Plumbing(nn.Module):
    """Two inputs by keyword, a layer that returns a tuple, a dict as output, a table that is the same for all images."""

    def __init__(self):
        super().__init__()
        self.trunk, self.table = nn.Conv2d(3, 5, 3, 2, 1), nn.Embedding(4, 5)
        self.layer, self.head = Paired(), nn.Conv2d(5, 3, 1)

    def forward(self, picture, scale):
        offset = self.table(torch.arange(4)).mean(0)
        maps, other = self.layer(self.trunk(picture * scale))
        return {"logits": self.head(torch.tanh(maps + other[:, :, None, None] + offset[:, None, None])).mean((2, 3))}


class Paired(nn.Module):
    def forward(self, maps):
        return maps.exp(), maps.mean((2, 3))


def test_any_structure_of_inputs_and_outputs():
    model, kept = Plumbing().eval(), []
    batch = {"picture": images(2), "scale": torch.tensor([0.5, 1.5]).reshape(2, 1, 1, 1)}
    glowmap.explain(model, batch, target=1, layer="layer", method=asking(kept))
    for image in range(2):
        for factor, score in zip(FACTORS, kept[image], strict=True):
            handle = model.layer.register_forward_hook(lambda _m, _i, pair: (pair[0] * factor, pair[1]))  # noqa: B023
            with torch.no_grad():
                wanted = model(**{name: value[image : image + 1] for name, value in batch.items()})["logits"][0, 1]
            handle.remove()
            torch.testing.assert_close(score, wanted)


class Twice(Skipping):
    """Runs its layer twice; the last run is the one that is explained."""

    def forward(self, images):
        maps = self.act(self.trunk(images))
        return self.head(self.first(self.first(maps)).mean((2, 3)))


def test_where_running_on_is_not_proven_the_whole_model_runs_and_a_note_says_so():
    model, batch, kept = Twice().eval(), images(2), []
    found = glowmap.explain(model, batch, target=1, layer="first", method=asking(kept))
    assert any("running the model from layer 'first' on does not give" in caution for caution in found.cautions)
    with torch.no_grad():
        once = model.first(model.act(model.trunk(batch)))
        wanted = [model.head((model.first(once) * factor).mean((2, 3)))[:, 1] for factor in FACTORS]
    torch.testing.assert_close(torch.stack(kept, 1), torch.stack(wanted))


class Counting(Skipping):
    """Depends on how many images it is given, so that what it says of two copies is not what it says of one."""

    def forward(self, images):
        return super().forward(images) * len(images)


def test_a_model_whose_answer_depends_on_the_batch_is_not_trusted():
    found = glowmap.explain(Counting().eval(), images(3), target=1, layer="second", method=asking([]))
    assert any("running the model from layer 'second' on" in caution for caution in found.cautions)


def test_all_is_given_back_when_the_head_fails():
    model, batch = Skipping().eval(), images(2)
    own = model.trunk.forward
    model.trunk.forward = own  # somebody patched it before
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the head is out of order")

    handle = model.head.register_forward_hook(fail)
    before = state_of(model)
    with pytest.raises(glowmap.errors.ModelError, match="the head is out of order"):
        glowmap.explain(model, batch, target=1, layer="second", method=asking([]))
    assert_unchanged(before, state_of(model))
    assert vars(model.trunk)["forward"] == own
    assert "forward" not in vars(model.second)
    handle.remove()
