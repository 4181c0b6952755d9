"""``glowmap demo`` as a command: what it writes and prints, and that it is reproducible."""

import contextlib
import io
import os
import re
import shutil
import sys
from functools import cache

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("torchvision")

import glowmap
from glowmap.cli import commands, demonstration, output

NAMES = ["layers.png", "question.png", "scene.png", "shortcut.png"]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The exit code, standard output, standard error and folder of ``glowmap demo``, run once."""
    home = tmp_path_factory.mktemp("first")
    environment = os.environ | {"COLUMNS": "160"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(home)
        patch.setattr(sys, "argv", ["glowmap", "demo"])
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                commands.main()
            except SystemExit as ended:
                code = ended.code or 0
    return code, out.getvalue(), err.getvalue(), home / "demo-out"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "demo-out"


def test_the_demo_writes_its_pictures_and_says_the_same_on_every_run(first_run, run, folder, tmp_path):
    code, out, err, written = first_run
    assert (code, err) == (0, "")
    again = run("demo", "--out", tmp_path / "again")
    assert again == (0, out.replace("demo-out", str(tmp_path / "again")), "")
    assert sorted(file.name for file in written.iterdir()) == NAMES
    for name in NAMES:
        assert (written / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with Image.open(written / "scene.png") as scene:
        assert scene.size == (576, 384)
        assert np.array_equal(np.asarray(scene), np.asarray(demonstration.scene().picture))


def test_the_share_of_heat_on_cars_is_printed_for_each_layer(first_run):
    _, out, *_ = first_run
    printed = [float(share) / 100 for share in re.findall(r"backbone\.layer\d +\d+ x \d+ +(\S+)%", out)]
    scene = demonstration.scene()
    found = glowmap.explain(glowmap.load("demo"), scene.picture, target="car", layer=list(demonstration.LAYERS))
    assert printed == [pytest.approx(one.share(scene.mask("car"))[0].value, abs=0.0006) for one in found]
    assert printed == sorted(printed)
    assert printed[-1] > 8 * scene.mask("car").mean()
    assert f"{scene.mask('car').mean():.1%}" in out


def test_the_heat_lies_on_the_car_of_the_target(first_run):
    _, out, *_ = first_run
    printed = [
        [float(share) for share in shares] for shares in re.findall(r"car \(object at .*?\) +(\S+)% +(\S+)%", out)
    ]
    found = demonstration.heat_by_car()
    assert printed == [[pytest.approx(100 * share, abs=0.06) for share in shares] for shares in found.shares]
    for number, shares in enumerate(found.shares):
        assert shares[number] > 0.6
        assert shares[1 - number] < 0.02
        assert found.masks[number].mean() > 0.01


def test_the_two_classifiers_are_distinguished(first_run):
    _, out, *_ = first_run
    rows = re.findall(r"marked (\w+) +(\w+) +(\w+) +(\S+)% +(\S+) +(\S+)% +(\S+)", out)
    said = {(picture, model): answer for picture, model, answer, *_ in rows}
    assert said == {
        ("bus", "honest"): "bus",
        ("bus", "shortcut"): "bus",
        ("car", "honest"): "car",
        ("car", "shortcut"): "bus",
    }
    for marked in demonstration.marked_pictures():
        for name, explanation in (("honest", marked.honest), ("shortcut", marked.shortcut)):
            (printed,) = [row[3:] for row in rows if row[:2] == (marked.kind, name)]
            mark, thing = marked.shares(explanation)
            assert [float(number) for number in printed] == [
                pytest.approx(100 * mark.value, abs=0.06),
                pytest.approx(mark.value / mark.chance, abs=0.06),
                pytest.approx(100 * thing.value, abs=0.06),
                pytest.approx(thing.value / thing.chance, abs=0.06),
            ]
            assert mark.lift == mark.value / mark.chance
            if name == "shortcut":
                assert mark.lift > 10 > 5 * thing.lift / 2
            else:
                assert thing.value > 0.4
                assert mark.value < 0.02


def test_the_scene_is_explained_by_the_command_line_like_any_picture(first_run, run, folder):
    shutil.copytree(first_run[-1], folder)
    code, out, err = run("explain", "demo-out/scene.png", "--model", "demo")
    assert (code, err) == (0, "")
    assert "hires_cam at backbone.layer4 (32 x 48)" in out
    assert (folder.parent / "scene-answer.png").exists()
    code, out, _ = run("explain", "demo-out/scene.png", "--model", "demo/honest", "--target", "bus", "--out", "b.npz")
    assert code == 0
    assert "bus: grad_cam at layer4 (16 x 24)" in out
    code, out, _ = run("layers", "--model", "demo")
    assert ["backbone.layer4", "Sequential", "256", "32", "x", "48"] in [line.split() for line in out.splitlines()]


@pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")  # textual-image's
def test_panels_are_shown_where_there_is_a_terminal(run, folder, monkeypatch):
    pytest.importorskip("textual_image")
    for step in ("heat_by_layer", "heat_by_car", "marked_pictures"):
        monkeypatch.setattr(
            demonstration, step, cache(getattr(demonstration, step))
        )  # explained once, shown three times
    for home in (commands, output):
        monkeypatch.setattr(home, "console", Console(force_terminal=True, width=80))
    _, shown, _ = run("demo")
    _, hidden, _ = run("demo", "--no-show")
    assert "█" in shown
    assert "█" not in hidden
    monkeypatch.setitem(sys.modules, "textual_image", None)
    _, missing, _ = run("demo")
    assert 'pip install "glowmap[terminal]"' in missing


def test_a_folder_that_cannot_be_made_is_one_line_and_nothing_is_written(run, folder):
    (folder.parent / "file").write_text("")
    code, out, err = run("demo", "--out", "file/folder")
    assert (code, out) == (2, "")
    assert err == "error: the folder file/folder cannot be made (Not a directory); choose another --out\n"
