"""Many methods at many layers from one pass, and a layer's concepts."""

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
from glowmap.decomposition import factorised
from glowmap.errors import LayerError, MethodError
from tiny_models.convolutional import Classifier, Segmenter, images

ONE_PASS = [name for name, one in glowmap.METHODS.items() if {*one.needs} <= {"activations", "gradients"}]
CHEAP = [name for name in ONE_PASS if name != "kpca_cam"]  # the cube of the cells
LAYERS = ["features.0", "features.2", "features.4"]


@pytest.fixture
def classifier():
    return Classifier().eval()


def test_comparing_is_asking_one_by_one(classifier):
    batch, labels = images(2), torch.tensor([3, 1])
    found = glowmap.compare(classifier, batch, target=labels, layer=LAYERS)
    assert [(one.method, one.layer) for one in found] == [(name, layer) for name in CHEAP for layer in LAYERS]
    for one in found:
        alone = glowmap.explain(classifier, batch, target=labels, layer=one.layer, method=one.method)
        torch.testing.assert_close(one.raw, alone.raw)
        assert torch.equal(one.scores, alone.scores)


def test_one_forward_and_one_backward_pass_serve_all(classifier, monkeypatch):
    forwards, backwards, grad = [], [], torch.autograd.grad
    handle = classifier.features[0].register_forward_hook(lambda *_: forwards.append(1))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or grad(*a, **k))
    glowmap.compare(classifier, images(2), target=1, layer=LAYERS)
    assert (len(forwards), len(backwards)) == (1, 1)
    glowmap.compare(classifier, images(2), target=[1, 2], layer=LAYERS)
    assert (len(forwards), len(backwards)) == (2, 3)
    handle.remove()


def test_methods_are_named_or_tuned_and_stand_in_rows(classifier):
    with_parameters = glowmap.METHODS["fem"].with_parameters(sigmas=1.0)
    found = glowmap.compare(classifier, images(1), target=1, method=["hires_cam", with_parameters], layer=LAYERS[:2])
    assert [one.method for one in found] == ["hires_cam"] * 2 + ["fem"] * 2
    plain = glowmap.explain(classifier, images(1), target=1, layer=LAYERS[0], method="fem")
    assert not torch.equal(found[2].raw, plain.raw)
    rows = found._by_target()
    assert [[one.layer for one in row] for row in rows] == [LAYERS[:2], LAYERS[:2]]
    assert (
        found.panel().height
        > glowmap.compare(classifier, images(1), target=1, method=["fem"], layer=LAYERS).panel().height
    )


def test_errors_name_the_fact_and_the_remedy(classifier):
    with pytest.raises(MethodError, match="an empty list of methods; give at least one of cam, eigen_cam"):
        glowmap.compare(classifier, images(1), target=1, method=[], layer=LAYERS)
    with pytest.raises(MethodError, match="fem has no parameter 'sigma'; near names: sigmas"):
        glowmap.METHODS["fem"].with_parameters(sigma=1.0)
    with pytest.raises(LayerError, match="an empty list of layers"):
        glowmap.compare(classifier, images(1), target=1, layer=[])


def planted(images=1, cells=30, channels=12, seed=0):
    """Maps made of three concepts: each has channels of its own, and most cells belong to one of them."""
    rng = np.random.default_rng(seed)
    weights = rng.random((images, cells, 3)) * (rng.random((images, cells, 3)) < 0.4)
    vectors = np.zeros((3, channels))
    for number in range(3):
        vectors[number, number * 4 : number * 4 + 4] = rng.random(4) + 0.5
    maps = (weights @ vectors).transpose(0, 2, 1).reshape(images, channels, 5, cells // 5)
    return torch.from_numpy(maps), weights, vectors


@pytest.mark.parametrize("together", [False, True])
def test_planted_concepts_are_found(together):
    activations, weights, vectors = planted(images=3)
    maps, found = factorised(activations, 3, together=together)
    for image in range(3):
        rebuilt = torch.einsum("kij,kc->cij", maps[image], found[image])
        assert float((rebuilt - activations[image]).norm() / activations[image].norm()) < 0.01
        likeness = (
            torch.nn.functional.normalize(found[image], dim=1)
            @ torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).T
        )
        assert sorted(likeness.argmax(1).tolist()) == [0, 1, 2]
        assert (likeness.amax(1) > 0.99).all()
        for number, owner in enumerate(likeness.argmax(1).tolist()):
            pair = np.stack([maps[image, number].flatten().numpy(), weights[image, :, owner]])
            assert np.corrcoef(pair)[0, 1] > 0.99
    if together:
        assert torch.equal(found[0], found[2])
        assert float(maps.amax((0, 2, 3)).min()) == pytest.approx(1)
    else:
        assert torch.allclose(maps.amax((2, 3)), torch.ones(3, 3, dtype=maps.dtype))


def test_more_concepts_than_there_are_and_a_blank_layer():
    activations, *_ = planted()
    maps, _ = factorised(activations, 14)
    assert maps.isfinite().all()
    blank, vectors = factorised(torch.zeros(2, 4, 3, 3), 2)
    assert not (blank * vectors.sum(2)[..., None, None]).any()


class Painted(nn.Module):
    """Known truth: channel k of the layer is colour k, and the head says class k where colour k prevails."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Identity(), nn.Linear(3, 3, bias=False)
        self.head.weight.data = 8 * torch.eye(3)

    def forward(self, images):
        return self.head(self.layer(images * 1).mean((2, 3)))


def test_a_concept_is_called_by_the_classes_that_the_model_sees_in_it():
    batch = torch.zeros(1, 3, 6, 8)
    batch[:, 2, :, :5], batch[:, 0, :, 5:] = 1.0, 1.0  # five columns of blue, three of red
    model = glowmap.load(Painted(), mean=0.0, std=1.0, classes=["red", "green", "blue"])
    found = glowmap.concepts(model, batch, layer="layer", count=2)
    assert [one.target_names[0].split(",")[0] for one in found] == ["concept 1: blue 100%", "concept 2: red 100%"]
    np.testing.assert_allclose(found[0].raw[0], batch[0, 2], atol=1e-3)
    np.testing.assert_allclose(found[1].raw[0], batch[0, 0], atol=1e-3)
    assert float(found[0].scores[0]) == pytest.approx(1, abs=1e-3)
    assert found[0].method == "deep_feature_factorisation"
    assert found.panel().width > 300


def test_concepts_of_a_dense_model_and_of_one_without_classes():
    found = glowmap.concepts(Segmenter().eval(), images(2), layer=["encoder.1", "encoder.3"], count=3, together=True)
    assert [(one.layer, one.target_names[0][:9]) for one in found] == [
        (layer, f"concept {number}") for layer in ("encoder.1", "encoder.3") for number in (1, 2, 3)
    ]
    mute = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(0))
    assert glowmap.concepts(mute, images(1), layer="1", count=2)[0].target_names == ("concept 1",)
    with pytest.raises(MethodError, match="0 concepts were asked for; ask for a whole number"):
        glowmap.concepts(mute, images(1), layer="1", count=0)


def test_negative_activations_are_noted(classifier):
    (caution,) = {*glowmap.concepts(classifier, images(1), layer="features.0", count=2).cautions}
    assert caution == "layer 'features.0' has negative activations, which concepts leave out"
    assert caution.code == "negative-activations"
