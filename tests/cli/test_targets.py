"""Questions on the command line: what the options become, which of them go together, and what a person is told."""

import ast
import re
from itertools import combinations
from pathlib import Path

import pytest

import glowmap
from closeness import assert_equal_up_to_rounding
from glowmap import targets
from glowmap.cli.targets import TargetOptions
from glowmap.errors import GlowmapError, InputError
from glowmap.targets import (
    AllDetections,
    At,
    Contrast,
    Detection,
    Finer,
    Not,
    OutputValue,
    Pixels,
    Predicted,
    Text,
    top,
)


class Colours:
    """As much of a model as a question needs."""

    class_names = ("red", "green", "7")


# each option as it is used by itself, with what it cannot do without
USES = {
    "target": {"target": ["red"]},
    "against": {"against": ["green"]},
    "finer": {"finer": True},
    "not": {"not_": True},
    "top": {"top": 2},
    "at": {"at": ["120,80"]},
    "box": {"box": ["0"]},
    "above": {"box": ["all"], "above": 0.25},
    "of": {"box": ["0"], "of": "left"},
    "text": {"text": ["a dog"]},
    "prompt": {"prompt": "what is it?"},
    "word": {"text": ["a dog"], "word": "dog"},
    "words": {"text": ["a dog"], "words": True},
    "value": {"value": 0},
}
HERE = At(120.0, 80.0)

# every two options that are a question, and which
QUESTIONS = {
    ("target", "against"): [Contrast("red", ["green"])],
    ("target", "finer"): [Finer("red")],
    ("target", "not"): [Not("red")],
    ("target", "at"): [Pixels("red", HERE)],
    ("target", "box"): [Detection(0, category="red")],
    ("target", "above"): [AllDetections(0.25, category="red")],
    ("against", "not"): [Not(Contrast(Predicted(), ["green"]))],
    ("against", "top"): [Contrast(one, ["green"]) for one in top(2)],
    ("against", "at"): [Pixels(Contrast(Predicted(), ["green"]), HERE)],
    ("against", "box"): [Detection(0, category=Contrast(Predicted(), ["green"]))],
    ("against", "text"): [Text("a dog", against=("green",))],
    ("finer", "not"): [Not(Finer())],
    ("finer", "top"): [Finer(one) for one in top(2)],
    ("finer", "at"): [Pixels(Finer(), HERE)],
    ("finer", "box"): [Detection(0, category=Finer())],
    ("not", "top"): [Not(one) for one in top(2)],
    ("not", "at"): [Not(Pixels(None, HERE))],
    ("not", "box"): [Not(Detection(0))],
    ("not", "above"): [Not(AllDetections(0.25))],
    ("not", "of"): [Not(Detection(0, of="left"))],
    ("not", "text"): [Not(Text("a dog"))],
    ("not", "prompt"): [Not(Text(None, "what is it?"))],
    ("not", "word"): [Not(Text("a dog", word="dog"))],
    ("not", "value"): [Not(OutputValue(0))],
    ("box", "above"): [Detection(0), AllDetections(0.25)],
    ("box", "of"): [Detection(0, of="left")],
    ("above", "of"): [AllDetections(0.25, of="left"), Detection(0, of="left")],
    ("text", "prompt"): [Text("a dog", "what is it?")],
    ("text", "word"): [Text("a dog", word="dog")],
    ("text", "words"): [Text("a dog", each_word=True)],
    ("prompt", "word"): [Text("a dog", "what is it?", word="dog")],
    ("prompt", "words"): [Text("a dog", "what is it?", each_word=True)],
}


def together(one, other):
    lists = {key: [*one[key], *other[key]] for key in {*one} & {*other} if isinstance(one[key], list)}
    return {**one, **other, **{key: list(dict.fromkeys(values)) for key, values in lists.items()}}


@pytest.mark.parametrize("pair", list(combinations([*USES, "like"], 2)), ids="-".join)
def test_every_two_options_are_a_question_or_an_error_that_names_both(pair, street):
    one, other = ({**USES, "like": {"like": [street]}}[name] for name in pair)
    if pair == ("not", "like"):
        (asked,) = TargetOptions(**together(one, other)).targets(Colours())
        assert isinstance(asked, Not)
        assert isinstance(asked.target, targets.Similar)
        assert asked.target.name == "street.png"
    elif pair in QUESTIONS:
        assert TargetOptions(**together(one, other)).targets(Colours()) == QUESTIONS[pair]
    else:
        with pytest.raises(InputError) as refused:
            TargetOptions(**together(one, other))
        for name, use in zip(pair, (one, other), strict=True):
            # by its own name, or by that of what it needs beside it
            assert any(f"--{option.rstrip('_')}" in str(refused.value) for option in (name, *use))
        assert "; " in str(refused.value)  # what to do


def test_no_option_is_left_out_of_the_table():
    from dataclasses import fields

    assert {*USES, "like"} == {one.name.rstrip("_") for one in fields(TargetOptions)}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "answer"),
        ({"target": ["red", "tiger cat"]}, "red-tiger_cat"),
        ({"target": ["car"], "against": ["bus", "tram"]}, "car_rather_than_bus_and_tram"),
        ({"against": ["bus"]}, "answer_rather_than_bus"),
        ({"target": ["car"], "finer": True}, "car_rather_than_rivals"),
        ({"not_": True}, "not_answer"),
        ({"target": ["car", "bus"], "not_": True}, "not_car-not_bus"),
        ({"top": 3}, "top_3"),
        ({"at": ["120,80", "3.5, 4"]}, "at_120_80-at_3.5_4"),
        ({"at": ["120,80"], "target": ["car"]}, "car_at_120_80"),
        ({"box": ["0", "3"]}, "box_0-box_3"),
        ({"box": ["0"], "target": ["dog"]}, "dog_in_box_0"),
        ({"box": ["1"], "of": "left"}, "left_of_box_1"),
        ({"box": ["all"], "above": 0.3}, "box_all"),
        ({"text": ["a photo/drawing of a dog"]}, "a_photo_drawing_of_a_dog"),
        ({"text": ["a" * 99]}, "a" * 40),
        ({"text": ["狗" * 40, "猫" * 40]}, "狗" * 40 + "-" + "猫" * 9),  # three bytes each
        ({"text": ["a dog"], "against": ["a cat"]}, "a_dog_rather_than_a_cat"),
        ({"text": ["a dog"], "word": "dog"}, "a_dog_word_dog"),
        ({"prompt": "what is it?"}, "what_is_it"),
        ({"prompt": "what is it?", "text": ["a dog", "a cat"]}, "what_is_it_a_dog-what_is_it_a_cat"),
        ({"words": True}, "answer_words"),
        ({"value": 0, "not_": True}, "not_value_0"),
        ({"target": [f"class {number}" for number in range(99)]}, "-".join(f"class_{n}" for n in range(99))[:150]),
    ],
)
def test_the_file_is_named_after_the_question(options, name):
    assert TargetOptions(**options).file_stem == name


def test_a_number_is_a_place_among_the_words_unless_it_is_one_of_them():
    def word(text, asked):
        (question,) = TargetOptions(text=text, word=asked).targets(Colours())
        return question.word

    assert word(["a dog"], "1") == 1
    assert word(["1 dog"], "1") == "1"
    assert word(["a dog"], "dog") == "dog"


def test_every_class_is_asked_about_at_every_place():
    asked = TargetOptions(target=["red", "7"], at=["120,80", "3,4"]).targets(Colours())
    assert asked == [Pixels(one, place) for one in ("red", "7") for place in (HERE, At(3.0, 4.0))]
    asked = TargetOptions(target=["red", "0"], box=["2", "all"]).targets(Colours())
    assert asked == [
        one for name in ("red", 0) for one in (Detection(2, category=name), AllDetections(0.5, category=name))
    ]


def test_the_answer_to_a_prompt_rather_than_another():
    (asked,) = TargetOptions(text=["red"], prompt="which colour?", against=["blue"]).targets(Colours())
    assert asked == Text("red", "which colour?", against=("blue",))


def test_words_of_what_the_model_says_by_itself():
    assert TargetOptions(words=True).targets(Colours()) == [Text(each_word=True)]
    assert TargetOptions(word="dog").targets(Colours()) == [Text(word="dog")]


# what is written in Python, and is nothing to type on the command line
PYTHON = re.compile(
    r"\b(target|smooth|processor|layer|prompt|word|each_word|against|above|classes|size)=|\btargets\.[A-Z]|\bglowmap\.[\w.]+\("
)


def _text(node):
    """Read a string in source code, with braces around what is put in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _source_trees():
    for file in Path(glowmap.__file__).parent.rglob("*.py"):
        yield file, ast.parse(file.read_text())


def _calls(tree, suffix):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "").endswith(suffix):
            yield node


def test_every_option_in_a_remedy_is_one_of_the_command_line(run):
    _, help_text, _ = run("explain", "--help")
    options = [
        _text(call.args[1]) for _, tree in _source_trees() for call in _calls(tree, "Remedy") if len(call.args) == 2
    ]
    named = {name for option in options if option is not None for name in re.findall(r"--[a-z]+", option)}
    assert {"--at", "--box", "--text", "--prompt", "--target"} < named
    assert [name for name in named if name not in help_text] == []


def test_the_command_line_prints_no_python_but_where_it_says_so():
    """The fact of an error, a remedy that is no Remedy, and an option are printed as they are."""
    checked = 0
    for file, tree in _source_trees():
        options = [call.args[1] for call in _calls(tree, "Remedy") if len(call.args) == 2]
        printed = [*options, *(call.args[0] for call in _calls(tree, "Error") if call.args)]
        for text in filter(None, map(_text, printed)):
            assert not PYTHON.search(text), (file, text)
            checked += 1
    assert checked > 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"above": 0.5}, "--above takes all detections from a score on, and there is no --box all; add it, or leave"),
        ({"above": 0.5, "box": ["0"]}, "--above takes all detections from a score on, and there is no --box all"),
        ({"of": "left"}, "and there is no --box NUMBER; add it"),
        ({"box": ["all"], "finer": True}, "--box all adds up detections"),
        ({"box": ["0", "all"], "against": ["green"]}, "--box all adds up detections"),
        ({"at": ["120"]}, "--at '120' cannot be read; write X,Y"),
        ({"at": ["120;80"]}, "cannot be read"),
        ({"box": ["one"]}, "--box 'one' cannot be read"),
        ({"text": [" "]}, "text is an empty sentence; give words"),
        ({"prompt": ""}, "prompt is an empty sentence; give words"),
        ({"prompt": "what?", "against": ["a cat"]}, "give the answer to compare with --text"),
        ({"box": ["0"], "of": "lefts"}, "a detection has no part 'lefts'; near names: left"),
        ({"like": [Path("nowhere.png")]}, "there is no file nowhere.png"),
        ({"target": ["car"], "top": 3}, "--target names a class and --top takes the likeliest classes"),
    ],
)
def test_what_is_no_question_is_told_before_a_model_is_loaded(options, message):
    with pytest.raises(GlowmapError, match=message):
        TargetOptions(**options)


OWN = """
import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

def detector():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        body.out_channels = 16
        anchors = AnchorGenerator(sizes=((16,),), aspect_ratios=((0.5, 1.0),))
        sizes = {"min_size": 96, "max_size": 160}
        made = RetinaNet(body, 3, anchor_generator=anchors, score_thresh=0.0, detections_per_img=12, **sizes)
        nn.init.normal_(made.head.classification_head.cls_logits.weight, std=0.6)
    return made.eval()

def ages():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    return nn.Sequential(*layers).eval()

class Halves(nn.Module):
    # known truth: red is predicted on the left, blue on the right, and green nowhere
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(2), nn.Identity())

    def forward(self, images):
        maps = self.features(images)
        left = torch.arange(maps.shape[-1]) < maps.shape[-1] // 2
        return torch.stack([maps[:, 0] + 9 * left, maps[:, 1] - 9, maps[:, 2] + 9 * ~left], 1)

def halves():
    return Halves().eval()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, street):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def asked(run, model, *options):
    """Ask on the command line; give what was told and the numbers that were written."""
    code, out, err = run("explain", "street.png", "--model", model, "--classes", "names.txt", *options, "-o", "out.npz")
    assert (code, err) == (0, "")
    return out, glowmap.Explanations.load("out.npz")


def wanted(model, target, **options):
    return glowmap.explain(glowmap.load(model, classes="names.txt"), "street.png", target=target, **options)


def same(found, expected):
    assert [one.target_names for one in found] == [one.target_names for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.layer, one.method) == (other.layer, other.method)
        assert_equal_up_to_rounding(one.scores, other.scores)
        assert_equal_up_to_rounding(one.raw, other.raw)
        assert bool(one.raw.any())


def test_objects_and_classes_where_they_are_pointed_at(folder, run):
    options = ["--at", "45,20", "--at", "3,20", "--layer", "features"]
    out, found = asked(run, "own.py:halves", *options)
    same(found, wanted("own.py:halves", [At(45, 20), At(3, 20)], layer="features"))
    assert [one.target_names[0] for one in found] == ["blue (object at 45, 20)", "red (object at 3, 20)"]
    # the one object is the right half, the other the left one, and the map of each lies on it alone
    assert [bool(one.raw[..., :15].any()) for one in found] == [False, True]
    assert [bool(one.raw[..., 15:].any()) for one in found] == [True, False]
    assert "blue (object at 45, 20): hires_cam at features (20 x 30), score" in out
    _, found = asked(run, "own.py:halves", *options[:2], "--target", "green", "--against", "red", "-l", "features")
    same(found, wanted("own.py:halves", [Pixels(Contrast("green", ["red"]), At(45, 20))], layer="features"))
    _, found = asked(run, "own.py:halves", *options[:2], "--against", "red", "-l", "features")
    assert found[0].target_names == ("blue rather than red (object at 45, 20)",)
    _, found = asked(run, "own.py:halves", "--top", "2", "--not", "-l", "features")
    same(found, wanted("own.py:halves", [Not(one) for one in top(2)], layer="features"))


def test_detections_are_listed_and_asked_about(folder, run):
    pytest.importorskip("torchvision")
    out, found = asked(run, "own.py:detector", "--box", "1", "--box", "8")
    same(found, wanted("own.py:detector", [Detection(1), Detection(8)]))
    boxes = found[0].prediction.boxes[0]
    assert len(boxes) == 12
    lines = out.splitlines()
    assert lines[0] == "12 detections, of which the surest 10 are listed; --box NUMBER explains one"
    assert lines[1].split() == ["box", "class", "score", "left", "top", "right", "bottom"]
    for number, (line, box) in enumerate(zip(lines[2:12], boxes, strict=False)):
        corners = [f"{share * pixels:.0f}" for share, pixels in zip(box.corners, (60, 40, 60, 40), strict=True)]
        assert line.split() == [str(number), box.name, f"{box.score:.2f}", *corners]
    assert lines[12].startswith(f"{boxes[1].name} {boxes[1].score:.2f} (box 1): ")
    _, found = asked(run, "own.py:detector", "--box", "0", "--target", "blue", "--target", "0")
    same(found, wanted("own.py:detector", [Detection(0, category="blue"), Detection(0, category=0)]))
    _, found = asked(run, "own.py:detector", "--box", "2", "--of", "left")
    same(found, wanted("own.py:detector", [Detection(2, of="left")]))
    _, found = asked(run, "own.py:detector", "--box", "all", "--above", "0.001", "--not")
    same(found, wanted("own.py:detector", [Not(AllDetections(0.001))]))
    _, found = asked(run, "own.py:detector")
    same(found, wanted("own.py:detector", [Detection(0)]))


def test_the_layer_of_a_detection_is_told(folder, run):
    code, out, err = run("layers", "--model", "own.py:detector")
    assert (code, err) == (0, "")
    assert out.splitlines()[3].split()[:3] == ["backbone", "Sequential", "16"]


def test_numbers_that_are_no_classes(folder, run):
    (Path("names.txt")).write_text("age\nheight\n")
    out, found = asked(run, "own.py:ages", "--value", "1")
    same(found, wanted("own.py:ages", [OutputValue(1)]))
    assert "output 1: grad_cam at " in out


def test_sentences_and_their_words(folder, run):
    transformers = pytest.importorskip("transformers")
    from tiny_models import generative as ours

    ours.blip().save_pretrained("blip")
    transformers.BlipProcessor(ours.image_processor(), ours.bert()).save_pretrained("blip")
    loaded = glowmap.load("hf/blip")
    sentence = "a dog on the sofa"
    code, out, _ = run("explain", "street.png", "--model", "hf/blip", "--text", sentence, "--words", "-o", "out.npz")
    assert code == 0
    found = glowmap.Explanations.load("out.npz")
    same(found, glowmap.explain(loaded, "street.png", target=[Text(sentence, each_word=True)]))
    # the sentence is told once, and then its words
    told = [line.partition(": ")[0] for line in out.splitlines()[: len(found)]]
    assert told == ["'a dog on the sofa'", "'a'", "'dog'", "'on'", "'the'", "'sofa'"]
    code, out, _ = run(
        "explain", "street.png", "--model", "hf/blip", "--text", sentence, "--word", "1", "-o", "out.npz"
    )
    assert code == 0
    same(glowmap.Explanations.load("out.npz"), glowmap.explain(loaded, "street.png", target=[Text(sentence, word=1)]))
    assert out.startswith("'dog' in 'a dog on the sofa': ")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("halves", "--target green", "no pixel is predicted as 'green'; give a class that is predicted \\(.*--at X,Y$"),
        (
            "halves",
            "--at 60,20",
            "the point 60, 20 .* lies outside the picture, of 60 x 40 pixels; give a point inside",
        ),
        ("halves", "--top 3", "there is no class of rank 2.*ask for fewer: --top NUMBER$"),
        (
            "halves",
            "--text car --against car",
            "'car' is set against itself, which gives zero; leave it out of --against$",
        ),
        ("halves", "--like street.png", "not an embedding; give the part .*targets.Unit.*\\(in Python\\)$"),
        ("halves", "--target red --against red", "'red' is contrasted with itself, which gives zero"),
        ("halves", "--box 0", "is not a detector .*; choose a class: --target CLASS$"),
        ("halves", "--text car", "no way to give halves a text; .*: --model hf/NAME or open_clip/NAME$"),
        ("ages", "--at 3,3", "returns one score per class and image .*; give the class alone: --target CLASS$"),
        ("ages", "--value 2", "no output 2: ages has 2, from 0 to 1"),
        ("ages", "--target red --prompt what?", "--target names a class and --prompt gives a question to the model"),
        ("ages", "--like nowhere.png", "there is no file nowhere.png"),
        ("detector", "--box 12", "there is no detection 12: detector found 12, 0: .*; give a number from 0 to 11"),
        (
            "detector",
            "--box all",
            "nothing with a score of at least 0.5: .*; give a lower one: --above SCORE$",
        ),
        ("detector", "--at 3,3", "returns detections; give one: --box NUMBER$"),
        ("detector", "--box 0 --of objectness", "computes no objectness, .*; give the class as target"),
    ],
)
def test_a_question_that_the_model_cannot_be_asked_is_one_line(folder, run, model, options, message):
    names = ["--classes", "names.txt"] if model != "ages" else []
    names += ["--layer", "features"] if model == "halves" else []
    code, out, err = run("explain", "street.png", "--model", f"own.py:{model}", *names, *options.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert not list(Path().glob("street-*"))
