"""The command line, run in this process through its own entry point, and once as a process of its own."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import glowmap
from closeness import assert_equal_up_to_rounding
from glowmap.cli import output
from glowmap.evidence import method_cost

OWN = """
import torch
from torch import nn

class Colours(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(2), nn.Identity())
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, images):
        return self.up(self.features(images))

def colours():
    return Colours().eval()

def broken():
    return nn.Sequential(nn.Conv2d(7, 2, 1))
"""


@pytest.fixture
def own(tmp_path, monkeypatch, street):
    """A folder with street.png, a model that sees red, green and blue, and the names of its classes."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return ["--model", "own.py:colours", "--classes", "names.txt", "--mean", "0.5", "--std", "0.5"]


def test_explain_writes_the_panel_and_says_what_it_explained(own, run):
    code, out, err = run("explain", "street.png", *own, "--target", "blue", "--layer", "features", "--out", "sky.png")
    assert (code, err) == (0, "")
    # the sky: 20 x 60 pixels less 2 x 18, of 230/255, normalised to (0.902 - 0.5) / 0.5
    # of a part of the places, so hires_cam where no method is named
    assert "blue: hires_cam at features (20 x 30), score 936" in out
    assert "wrote sky.png" in out
    expected = glowmap.explain(
        glowmap.load("own.py:colours", mean=0.5, std=0.5, classes="names.txt"),
        "street.png",
        target=["blue"],
        layer="features",
    )
    assert np.array_equal(np.asarray(Image.open("sky.png")), np.asarray(expected.panel()))


def test_several_layers_and_classes_and_another_method_as_numbers(own, run):
    layers = ["--layer", "features.0", "--layer", "features.1"]
    code, _, _ = run(
        "explain", "street.png", *own, *layers, "-t", "2", "-t", "red", "--method", "hires_cam", "-o", "all.npz"
    )
    assert code == 0
    found = glowmap.Explanations.load("all.npz")
    assert [(one.target_names[0], one.layer, one.method) for one in found] == [
        ("blue", "features.0", "hires_cam"),
        ("blue", "features.1", "hires_cam"),
        ("red", "features.0", "hires_cam"),
        ("red", "features.1", "hires_cam"),
    ]


def test_out_is_named_after_picture_and_target(own, run):
    assert run("explain", "street.png", *own, "--target", "red", "--layer", "features")[0] == 0
    assert Path("street-red.png").exists()


def test_several_methods_with_their_knobs_smoothed_and_fused(own, run):
    layers = ["--layer", "features.0", "--layer", "features.1", "-t", "red", "-o", "all.npz"]
    several = ["--method", "seg_xres_cam", "--method", "hires_cam", "--set", "window=3", "--smooth", "flips"]
    code, _, err = run("explain", "street.png", *own, *layers, *several, "--fuse", "max")
    assert (code, err) == (0, "")
    found = glowmap.Explanations.load("all.npz")
    assert [one.method for one in found] == [f"{name} + flips, max of layers" for name in ("seg_xres_cam", "hires_cam")]
    model = glowmap.load("own.py:colours", mean=0.5, std=0.5, classes="names.txt")
    wanted = glowmap.explain(
        model,
        "street.png",
        target="red",
        layer=["features.0", "features.1"],
        method=glowmap.METHODS["seg_xres_cam"].with_parameters(window=3),
        smooth="flips",
    ).fused("max")
    assert_equal_up_to_rounding(found[0].raw, wanted[0].raw)


def test_concepts(own, run):
    code, out, err = run("concepts", "street.png", *own, "--layer", "features.0", "--count", "2")
    assert (code, err) == (0, "")
    assert "concept 1: " in out
    assert "deep_feature_factorisation at features.0 (20 x 30)" in out
    assert Path("street-concepts.png").exists()
    code, _, err = run("concepts", "street.png", *own, "--layer", "features.0", "--count", "9")
    assert code == 2
    assert err.startswith("error: 9 concepts were asked for, and layer 'features.0' has at most 3")


def test_one_method_is_told_whole(run):
    code, out, _ = run("methods", "rise")
    assert code == 0
    assert "--set masks=2000" in out
    assert "1/(p N) sum_n s(x * M_n) M_n" in out
    code, _, err = run("methods", "rize")
    assert code == 2
    assert "no method 'rize'; near names: rise" in err


def test_size_and_three_colours(own, run):
    code, out, _ = run(
        "explain", "street.png", *own, "--size", "8x12", "--mean", "0.5,0.5,0.4", "-t", "red", "-l", "features"
    )
    assert code == 0
    assert "(4 x 6)" in out


def test_layers(own, run):
    code, out, _ = run("layers", "--model", "own.py:colours", "--size", "16x24")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["features.0", "AvgPool2d", "3", "8", "x", "12"] in rows
    assert ["features", "Sequential", "3", "8", "x", "12"] in rows
    assert ["up", "Upsample", "3", "16", "x", "24"] in rows
    assert ["features.0", "AvgPool2d", "3", "8", "x", "12"] not in [
        line.split() for line in run("layers", "--model", "own.py:colours", "--depth", "1")[1].splitlines()
    ]


def test_layers_of_a_torchvision_model_need_no_weights(run):
    pytest.importorskip("torchvision")
    code, out, _ = run("layers", "--model", "resnet18", "--depth", "1")
    assert code == 0
    assert ["layer4", "Sequential", "512", "7", "x", "7"] in [line.split() for line in out.splitlines()]


def test_methods_lists_the_shelf(run, monkeypatch):
    monkeypatch.setattr(output, "console", Console(width=700))
    code, out, _ = run("methods")
    assert code == 0
    for name, method in glowmap.METHODS.items():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert method_cost(method) in line
        assert method.paper in line


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"picture": "nowhere.png"}, "there is no file nowhere.png"),
        ({"picture": "names.txt"}, "names.txt is not a picture"),
        ({"--layer": "feature"}, "no layer 'feature' in Colours; near names: features"),
        ({"--target": "rod"}, "no class 'rod' in colours; near names: red"),
        ({"--target": "7"}, "no class 7"),
        ({"--at": "12"}, "--at '12' cannot be read; write X,Y"),
        ({"--at": "-3,5"}, "--at '-3,5' cannot be read; write X,Y"),
        ({"--box": "first"}, "--box 'first' cannot be read; write its number"),
        ({"--box": "-1"}, "--box '-1' cannot be read; write its number"),
        ({"--against": "rod"}, "no class 'rod' in colours; near names: red"),
        ({"--method": "gradcam"}, "no method 'gradcam'; near names: grad_cam"),
        ({"--set": "masks=20"}, "--set 'masks=20' is a parameter of a method, and none is named"),
        ({"--model": "own.py:colors"}, "no factory 'colors'"),
        ({"--model": "own.py:broken", "--layer": "0"}, "Sequential raised RuntimeError"),
        ({"--model": "resnet-50"}, "no model 'resnet-50' in torchvision; near names: resnet50"),
        ({"--weights": "nowhere.pt"}, "there is no weights file nowhere.pt"),
        ({"--classes": "nowhere.txt"}, "class names in nowhere.txt cannot be read"),
        ({"--size": "big"}, "--size 'big' cannot be read; write 224 or 375x500"),
        ({"--mean": "1,2"}, "--mean '1,2' cannot be read"),
        ({"--std": "0"}, "std=0.0 divides by zero|std=\\[0.0\\] divides by zero"),
        ({"--out": "out.xyz"}, "out.xyz ends in .xyz"),
        ({"--colormap": "jett"}, "no colormap 'jett'; near names: jet"),
        ({"--device": "cuda:77"}, "cannot be moved to the device 'cuda:77'"),
        ({"--out": "nowhere/out.png"}, "nowhere/out.png cannot be written"),
        ({"--out": "street.png"}, "street.png is the picture itself and would be overwritten"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(own, run, changed, message):
    options = dict(zip(own[::2], own[1::2], strict=True)) | {
        "--target": "red",
        "--layer": "features",
        "--out": "out.png",
    }
    picture = changed.pop("picture", "street.png") if "picture" in changed else "street.png"
    before = {file: file.read_bytes() for file in Path().iterdir() if file.is_file()}
    code, out, err = run("explain", picture, *(part for pair in (options | changed).items() for part in pair))
    assert code == 2
    assert re.search(message, err), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert {file: file.read_bytes() for file in Path().iterdir() if file.is_file()} == before


def test_as_a_process_of_its_own(own):
    command = [Path(sys.executable).with_name("glowmap"), "explain", "street.png", *own, "-l", "features", "-t"]
    good = subprocess.run([*command, "red"], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*command, "rod"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: no class 'rod'")


@pytest.mark.parametrize("command", ["explain", "concepts", "layers"])
def test_every_command_with_a_model_has_all_its_options(command, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(command, "--help")
    assert code == 0
    for option in ("--model", "--weights", "--size", "--mean", "--std", "--classes", "--device"):
        assert re.search(rf"^│ .*{option} ", out, re.M), option


def test_weights_are_random_for_layers_and_trained_elsewhere(own, run):
    """A factory's model keeps its own weights; else `glowmap layers` downloads nothing."""
    from glowmap.cli.groups import ModelOptions

    models = [ModelOptions(model="demo", weights=weights).load() for weights in (None, "default", "random")]
    first, second, third = (next(model.module.parameters()).detach() for model in models)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)
    random = ModelOptions(model="demo").load(default_weights="random")
    assert any("random" in caution for caution in random.cautions)
