"""The public face: what is there, that it is complete, and that the command line's help does not wait for torch."""

import ast
import copy
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import glowmap
from glowmap import cautions, errors
from glowmap.errors import GlowmapError, MethodError
from glowmap.evidence import requirements
from glowmap.methods import Method
from glowmap.registry import Registry, near_names

SOURCE = Path(glowmap.__file__).parent


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_every_public_name_is_there():
    assert sorted(dir(glowmap)) == sorted([*glowmap.__all__, "__version__"])
    for name in glowmap.__all__:
        assert getattr(glowmap, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'explane'; it has METHODS"):
        glowmap.explane  # noqa: B018


def test_the_function_explain_is_not_hidden_by_a_module():
    program = (
        "import glowmap.explainer, glowmap.explanation.explanation, glowmap\n"
        "print(callable(glowmap.explain), glowmap.Explainer.__name__)"
    )
    assert run(program) == "True Explainer"


def test_help_and_version_do_not_import_torch():
    program = (
        "import sys\nfrom glowmap.cli.commands import app\n"
        "try: app({})\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    )
    assert run(program.format(["--help"])).endswith("False")
    assert run(program.format(["explain", "--help"])).endswith("False")
    assert run(program.format(["--version"])) == f"glowmap {glowmap.__version__}\nFalse"


def test_every_file_of_a_shelf_is_imported_by_its_face():
    shelves = ("methods", "render", "models")  # the last may import the first two
    program = "import importlib, sys\n" + "\n".join(
        f"importlib.import_module('glowmap.{shelf}')\n"
        f"print(*(module for module in sys.modules if module.startswith('glowmap.{shelf}.')))"
        for shelf in shelves
    )
    for shelf, imported in zip(shelves, run(program).splitlines(), strict=True):
        files = {module.name for module in pkgutil.walk_packages([str(SOURCE / shelf)], f"glowmap.{shelf}.")}
        assert set(imported.split()) == files


def test_no_file_bears_the_name_of_a_public_function_of_its_package():
    for folder in {file.parent for file in SOURCE.rglob("*.py")}:
        files = {file.stem: file for file in folder.glob("*.py")}
        for file in files.values():
            for node in ast.parse(file.read_text()).body:
                function = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
                assert not (function and node.name in files), f"{file}: {node.name}"


def test_every_error_has_the_root_and_stands_in_the_tree():
    drawn = errors.__doc__
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, GlowmapError)
            assert name in drawn


def test_an_unknown_method_gets_the_near_names():
    with pytest.raises(MethodError, match="no method 'gradcam'; near names: grad_cam"):
        glowmap.explain(
            torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1)), torch.ones(1, 3, 4, 4), layer="0", method="gradcam"
        )


def test_a_registry_takes_a_name_once_and_keeps_the_order():
    registry = Registry("thing", MethodError)
    registry.register("b", 1)
    registry.register("a", 2)
    assert list(registry) == ["b", "a"]
    assert dict(registry.items()) == {"b": 1, "a": 2}
    assert (len(registry), "a" in registry, "c" in registry) == (2, True, False)
    assert repr(registry) == "<things: b, a>"
    with pytest.raises(ValueError, match="the thing 'a' is registered already"):
        registry.register("a", 3)


@pytest.mark.parametrize(
    ("name", "names", "ending"),
    [
        ("layer4", ["conv1", "backbone.layer4", "backbone.layer4.0"], "near names: backbone.layer4"),
        ("Car", ["bus", "car", "cat"], "near names: car"),
        ("persn", ["bus", "person"], "near names: person"),
        ("xyz", ["bus", "person"], "there are: bus, person"),
        (
            "xyz",
            [f"class{i}" for i in range(20)],
            "there are: class0, class1, class2, class3, class4, class5, class6, class7 and 12 more",
        ),
        ("xyz", [], "there are none"),
    ],
)
def test_near_names(name, names, ending):
    assert near_names(name, names).startswith(ending)


def test_a_method_that_asks_for_unknown_evidence_fails_at_import():
    with pytest.raises(MethodError, match="a method asks for 'grads'; a method may ask for activations, "):
        requirements(("activations", "grads"))
    method = Method("unnamed", lambda activations, grads: None, ("activations", "grads"), {}, "", "")
    with pytest.raises(MethodError, match="a method asks for 'grads'; a method may ask for activations, "):
        glowmap.explain(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2), method=method)


def test_no_folder_holds_more_than_a_dozen_files():
    for folder in {file.parent for file in SOURCE.rglob("*.py")}:
        assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= 12, folder


def test_public_functions_have_a_docstring_and_no_file_is_too_long():
    for file in SOURCE.rglob("*.py"):
        text = file.read_text()
        assert text.count("\n") <= 400, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{file}: {node.name}"
        for node in ast.parse(text).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not any(getattr(decorator, "id", "") == "overload" for decorator in node.decorator_list):
                assert ast.get_docstring(node), f"{file}: {node.name}"


def test_a_caution_is_a_sentence_with_a_code_and_a_level(monkeypatch):
    monkeypatch.setattr(cautions, "CAUTIONS", {})
    kind = cautions.caution_kind("blank", "info", "look elsewhere")
    caution = kind("nothing is there")
    assert (caution, caution.code, caution.level, caution.kind.remedy) == (
        "nothing is there",
        "blank",
        "info",
        "look elsewhere",
    )
    for again in (copy.deepcopy(caution), pickle.loads(pickle.dumps(caution))):
        assert (again, again.code) == ("nothing is there", "blank")
    with pytest.raises(ValueError, match="a kind of caution with the code 'blank' is defined already"):
        cautions.caution_kind("blank", "caution", "do something")


# Counts the named functions of ours that a call enters, in a process without the checks of annotations. Prints the functions, the
# files, the rooms (folders and files at the root; the ground is one), the depth of the call stack, and the calls.
COUNTED = """
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

import glowmap

SOURCE = str(Path(glowmap.__file__).parent) + "/"
GROUND = {"cautions.py", "errors.py", "progress.py", "registry.py", "shapes.py", "tree.py"}


def entered(call):
    functions, depth, deepest, calls = set(), 0, 0, 0

    def profile(frame, event, _):
        nonlocal depth, deepest, calls
        code = frame.f_code
        if not code.co_filename.startswith(SOURCE) or code.co_name.startswith("<"):
            return
        if event == "call":
            depth, calls = depth + 1, calls + 1
            deepest = max(deepest, depth)
            functions.add((code.co_filename, code.co_qualname))
        elif event == "return":
            depth -= 1

    sys.setprofile(profile)
    call()
    sys.setprofile(None)
    files = {file.removeprefix(SOURCE) for file, _ in functions}
    rooms = {"ground" if file in GROUND else file.partition("/")[0] for file in files}
    print(len(functions), len(files), len(rooms), deepest, calls)


torch.manual_seed(0)
"""
TENSOR = """
explainer = glowmap.Explainer(torchvision.models.resnet18().eval(), layer="layer4")
images = torch.rand(1, 3, 224, 224)
assert not explainer(images, target=3, method="grad_cam").cautions
entered(lambda: explainer(images, target=3, method="grad_cam"))
"""
PICTURE = """
Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)).save("picture.png")
explainer = glowmap.Explainer(glowmap.load("resnet18", weights="random"), layer="layer4")
explainer("picture.png", target="sports car")
entered(lambda: explainer("picture.png", target="sports car"))
"""


def test_a_named_grad_cam_enters_few_functions_in_few_files():
    """The main path is read in a minute. The second call counts: the first verifies how the layer lies."""
    functions, files, rooms, depth, _ = map(int, run(COUNTED + TENSOR).split())
    assert (functions <= 80, files <= 20, rooms <= 12, depth <= 10) == (True,) * 4, (functions, files, rooms, depth)


def test_a_picture_and_a_class_by_name_make_few_calls(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    calls = int(run(COUNTED + PICTURE).split()[4])
    assert calls <= 400, calls


def test_variables_are_named_for_what_they_hold():
    """At most one read of a variable in a hundred is of a name that says nothing of its value."""
    empty = {"one", "own", "several", "given", "said", "told", "asked", "seen", "put", "found", "kept"}
    reads = [
        node.id
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    ]
    assert sum(name in empty for name in reads) < 0.01 * len(reads)
