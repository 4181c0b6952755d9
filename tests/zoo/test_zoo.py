"""Every architecture of the zoo is explained with nothing said about layers: at the right one, by a map that says something."""

import pytest
import torch

import glowmap
from glowmap.errors import LayerError
from zoo.specimen import Specimen
from zoo.table import SPECIMENS


def question(module, inputs):
    """Ask a detector about the largest box that it finds, or a class of any candidate; all others answer of themselves."""
    with torch.no_grad():
        answer = module(inputs) if isinstance(inputs, torch.Tensor) else None
    if not (isinstance(answer, list) and "boxes" in answer[0]):
        model = glowmap.load(module)
        return 0 if model.readers.are_detections else None
    left, top, right, bottom = answer[0]["boxes"].T
    largest = ((right - left) * (bottom - top)).argmax()
    return glowmap.targets.SimilarDetection(int(answer[0]["labels"][largest]), answer[0]["boxes"][largest].tolist())


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda one: f"{one.library}: {one.name}")
def test_is_explained_at_the_right_layer(specimen):
    pytest.importorskip(specimen.library)
    module, inputs = specimen.made(), specimen.inputs()
    explainer = glowmap.Explainer(module)
    if specimen.refused:
        with pytest.raises(LayerError, match=specimen.refused):
            explainer(inputs)
        return
    raw = explainer(inputs, target=question(module, inputs)).raw
    choice = explainer.layer
    verdict = specimen.judge(choice.name, choice.grid)
    assert verdict == "right" or (verdict == "usable" and specimen.settled), choice
    assert raw.shape == (1, *choice.grid)
    assert raw.isfinite().all()
    assert raw.std() > 1e-3 * raw.abs().max() > 0


def test_there_are_enough_and_each_says_why():
    assert len(SPECIMENS) >= 75
    assert len({(one.library, one.name) for one in SPECIMENS}) == len(SPECIMENS)
    assert all(one.why and (one.right or one.refused) for one in SPECIMENS)


def test_judges_by_name_and_grid_together():
    specimen = Specimen("net", "torch", torch.nn.Identity, dict, {r"layer4(\.1)?": (6, 8)}, r"layer4\..*")
    assert specimen.judge("layer4", (6, 8)) == "right"
    assert specimen.judge("layer4", (8, 6)) == "wrong"
    assert specimen.judge("layer4.0", (6, 8)) == "usable"
    assert specimen.judge("layer3", (12, 16)) == "wrong"


def test_makes_the_same_weights_each_time_and_leaves_the_generator_alone():
    specimen = Specimen("net", "torch", lambda: torch.nn.Conv2d(3, 4, 3), dict, {}, "")
    before = torch.get_rng_state()
    assert torch.equal(specimen.made().weight, specimen.made().weight)
    assert torch.equal(torch.get_rng_state(), before)
