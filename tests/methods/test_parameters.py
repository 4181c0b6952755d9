"""Knobs of methods, from Python and from the command line: what fits, and what is refused before anything runs."""

import pytest
import torch

import glowmap
from glowmap.cli.parsing import parse_parameter, set_parameters
from glowmap.errors import InputError, MethodError

METHODS = glowmap.METHODS


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("rise", {"masks": "3"}, "masks of rise is a whole number \\(by default 2000\\), not '3'"),
        ("rise", {"masks": 2.5}, "masks of rise is a whole number"),
        ("rise", {"masks": True}, "masks of rise is a whole number"),
        ("rise", {"keep": float("nan")}, "keep of rise is float"),
        ("occlusion", {"window": "32"}, "window of occlusion is a number or None"),
        ("score_cam", {"corners": "false"}, "corners of score_cam is bool"),
        ("seg_xres_cam", {"pooling": 3}, "pooling of seg_xres_cam is str"),
        ("grad_cam", {"masks": 3}, "grad_cam has no parameter 'masks'; there are none"),
        ("rise", {"mask": 3}, "rise has no parameter 'mask'; near names: masks"),
    ],
)
def test_a_value_of_another_kind_is_refused(name, parameters, message):
    with pytest.raises(MethodError, match=message):
        METHODS[name].with_parameters(**parameters)


def test_values_that_fit_are_used():
    chosen = METHODS["rise"].with_parameters(masks=7).with_parameters(keep=1).settings
    assert chosen == {"masks": 7, "keep": 1}
    assert METHODS["occlusion"].with_parameters(window=4, stride=None).settings == {"window": 4, "stride": None}
    assert METHODS["rise"].settings == {}


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("false", False, False),
        ("True", False, True),
        ("no", True, False),
        ("16", None, 16),
        ("0.1", None, 0.1),
        ("none", None, None),
        ("3", 2.0, 3.0),
        ("rbf", "sigmoid", "rbf"),
        ("true", "mean", "true"),
        ("many", 2000, "many"),
    ],
)
def test_knobs_are_read_from_text(text, default, value):
    read = parse_parameter(text, default)
    assert read == value
    assert type(read) is type(value)


def test_a_setting_goes_to_the_methods_that_have_it():
    names = ["rise", "grad_cam"]
    assert set_parameters(METHODS["rise"], ["masks=50"], names).settings == {"masks": 50}
    assert set_parameters(METHODS["grad_cam"], ["masks=50"], names).settings == {}
    with pytest.raises(MethodError, match="grad_cam has no parameter 'masks'"):
        set_parameters(METHODS["grad_cam"], ["masks=50"], ["grad_cam"])
    with pytest.raises(InputError, match="--set 'masks' cannot be read; write NAME=VALUE"):
        set_parameters(METHODS["rise"], ["masks"], names)


def test_a_switch_changes_the_map():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    batch = torch.randn(1, 3, 9, 9)
    model(batch)
    maps = {
        text: glowmap.explain(
            model.eval(),
            batch,
            target=0,
            layer="0",
            method=set_parameters(METHODS["score_cam"], [f"corners={text}"], []),
        ).raw
        for text in ("true", "false")
    }
    assert torch.equal(maps["false"], glowmap.explain(model, batch, target=0, layer="0", method="score_cam").raw)
    assert not torch.equal(maps["true"], maps["false"])
