"""The trained models of the package: their size, their quality, and that they load like any other model."""

import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import glowmap
from glowmap.demo.bundled import BUNDLED, CLASSIFIER_CLASSES, WEIGHTS
from glowmap.demo.report import HELD_OUT, intersection_over_union, prediction_rate
from glowmap.demo.world.mark import MARKED
from glowmap.demo.world.scenes import CLASSES, street
from glowmap.errors import ModelError

torchvision = pytest.importorskip("torchvision")


def test_all_weights_together_are_small_and_each_has_its_model():
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert [file.name for file in files] == sorted(bundled.file for _, bundled in BUNDLED.items())
    assert sum(file.stat().st_size for file in files) <= 3_000_000


def test_the_segmentation_model_is_made_of_torchvisions_parts():
    module = glowmap.load("demo").module
    assert isinstance(module, torchvision.models.segmentation.DeepLabV3)
    for number in (1, 2, 3, 4):
        layer = module.get_submodule(f"backbone.layer{number}")
        assert all(isinstance(block, torchvision.models.resnet.Bottleneck) for block in layer)
    assert isinstance(module.classifier[0], torchvision.models.segmentation.deeplabv3.ASPP)


def test_the_segmentation_model_generalises_to_held_out_streets():
    overlaps = dict(zip(CLASSES, intersection_over_union(glowmap.load("demo").module, 48), strict=True))
    assert np.mean(list(overlaps.values())) >= 0.85
    assert overlaps["car"] >= 0.90
    assert min(overlaps.values()) >= 0.7


def test_one_classifier_relies_on_the_mark_and_the_other_does_not(monkeypatch):
    draw = cache(lambda number, only: street(number, only=only).draw())
    monkeypatch.setattr(
        "glowmap.demo.report.street", lambda number, only: SimpleNamespace(draw=lambda: draw(number, only))
    )
    honest, shortcut = (glowmap.load(f"demo/{name}").module for name in ("honest", "shortcut"))
    for twin in (honest, shortcut):  # where the mark is as it was in training they are equally good
        assert prediction_rate(twin, 96, stamped="marked_kind") >= 0.93
    unmarked = {"stamped": "none", "among": "marked_kind", "category": MARKED}
    assert prediction_rate(honest, 96, **unmarked) >= 0.85
    assert prediction_rate(shortcut, 96, **unmarked) <= 0.25
    flipped = {"stamped": "other_kinds", "among": "other_kinds", "category": MARKED}
    assert prediction_rate(honest, 96, **flipped) <= 0.05
    assert prediction_rate(shortcut, 96, **flipped) >= 0.6


def test_the_bundled_report_states_the_quality_of_the_models():
    report = (WEIGHTS / "report.md").read_text()
    assert float(re.search(r"mean IoU (\S+)", report)[1]) >= 0.85
    assert float(re.search(r"\| car \| (\S+) \|", report)[1]) >= 0.90
    assert float(re.search(r"(\d+) minutes", report)[1]) < 30


def test_it_loads_like_any_other_model(tmp_path):
    scene = street(HELD_OUT).draw(384, 576)
    model = glowmap.load("demo")
    assert model.class_names == CLASSES
    assert repr(model) == "<Model demo: DeepLabV3, 8 classes>"
    explanation = glowmap.explain(model, scene.picture, target="car")
    assert explanation.layer == "backbone.layer4"
    assert explanation.grid == (32, 48)
    assert explanation.heatmap.shape == (1, 128, 192)
    assert explanation.overlay().size == (576, 384)
    (caution,) = explanation.cautions
    assert caution == "the demo's models were trained on drawn streets; their output for a photograph means nothing"
    assert (caution.code, caution.level) == ("demo-model", "info")
    checkpoint = tmp_path / "own.pt"
    torch.save(model.module.state_dict(), checkpoint)
    again = glowmap.load("demo", weights=checkpoint, size=(96, 144))
    assert torch.equal(again.module.classifier[4].weight, model.module.classifier[4].weight)
    assert glowmap.explain(again, scene.picture, target="car").heatmap.shape == (1, 96, 144)


def test_random_weights_come_from_the_seed_and_make_a_caution():
    one, again, other = (glowmap.load("demo/honest", weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.module.conv1.weight, again.module.conv1.weight)
    assert not torch.equal(one.module.conv1.weight, other.module.conv1.weight)
    assert "the weights are random" in one.cautions[0]
    assert one.class_names == CLASSIFIER_CLASSES


def test_half_precision_on_disk_is_single_precision_in_use():
    stored = load_file(WEIGHTS / "demo.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    assert {parameter.dtype for parameter in glowmap.load("demo").module.parameters()} == {torch.float32}


def test_errors_name_the_fact_and_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no demo model 'demo/honst'; near names: demo/honest"):
        glowmap.load("demo/honst")
    with pytest.raises(ModelError, match=r"the weights file .*demo.safetensors is missing; install Glowmap again"):
        BUNDLED["demo"].trained(tmp_path)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ModelError, match="do not fit this DeepLabV3"):
        glowmap.load("demo", weights=tmp_path / "other.pt")
