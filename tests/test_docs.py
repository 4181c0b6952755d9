"""Every block of code in the README and the docs is run, and its lists are the shelves'."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import glowmap
from glowmap.cli import commands, demonstration
from glowmap.evidence import method_cost
from tiny_models import contrastive, generative

torchvision = pytest.importorskip("torchvision")

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def downloaded(folder, repository, module, processor):
    """Lay a model out as the Hugging Face hub's cache has it."""
    place = folder / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("made-up")
    module.save_pretrained(place / "snapshots" / "made-up")
    processor.save_pretrained(place / "snapshots" / "made-up")


@cache
def made_up_weights(detector):
    """Random weights of torchvision's detector, or of its segmentation model with many cars and persons."""
    if detector:
        build = torchvision.models.detection.ssdlite320_mobilenet_v3_large
        return build(weights=None, weights_backbone=None).state_dict()
    model = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    model.classifier[4].bias.data[[7, 15]] += 10  # car and person
    return model.state_dict()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The folder of a Hugging Face cache with tiny models under the names that the pages use."""
    folder = tmp_path_factory.mktemp("hub")
    clip, writer = contrastive, generative
    downloaded(folder, "openai/clip-vit-base-patch32", clip.built(clip.clip), clip.processor())
    reading = writer.transformers.BlipProcessor(writer.image_processor(), writer.bert())
    downloaded(folder, "Salesforce/blip-image-captioning-base", writer.blip(), reading)
    return folder


@pytest.fixture
def at_home(tmp_path, monkeypatch, hub):
    """A folder with the demo's scene and street.jpg, and weights as if downloaded: made up, torchvision's with cars."""
    pixels = np.random.default_rng(0).integers(0, 256, (75, 100, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((500, 375)).save(tmp_path / "street.jpg")
    (tmp_path / "demo-out").mkdir()
    demonstration.scene().picture.save(tmp_path / "demo-out" / "scene.png")
    monkeypatch.chdir(tmp_path)
    weights = torchvision.models.get_model_weights("deeplabv3_resnet50").DEFAULT
    monkeypatch.setitem(weights.transforms.keywords, "resize_size", 130)  # of 520: for speed alone
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, *_, **__: made_up_weights("ssdlite" in url)
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, at_home):
    program = "\n".join(blocks(page, "python")).replace("masks=200", "masks=20")  # for speed alone
    exec(compile(program, page.name, "exec"), {"__name__": page.stem})
    if page.name == "README.md":
        with Image.open("overlay.png") as overlay:
            assert overlay.size == (576, 384)
        assert Path("car.png").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, at_home, monkeypatch):
    for block in blocks(page, "bash"):
        for line in block.splitlines():
            if line.startswith("glowmap "):
                monkeypatch.setattr(sys, "argv", shlex.split(line))
                code = 0
                try:
                    commands.main()
                except SystemExit as ended:
                    code = ended.code or 0
                assert code == 0, line
    assert page.name != "README.md" or Path("car.png").exists()


ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", re.M)


def test_the_table_of_methods_is_the_registry():
    page = (ROOT / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)
    methods = glowmap.METHODS.items()
    assert rows == [(name, method_cost(method), method.summary, method.use, method.paper) for name, method in methods]


def test_the_readmes_choice_of_methods_names_their_costs():
    rows = ROW.findall((ROOT / "README.md").read_text())
    assert len(rows) == 6
    for name, cost, _ in rows:
        assert method_cost(glowmap.METHODS[name]) == cost


def test_the_page_of_cautions_is_current():
    program = "import sys; sys.path.insert(0, 'docs'); import refresh; print(refresh.cautions_page(), end='')"
    page = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert (ROOT / "docs" / "cautions.md").read_text() == page


def test_every_chore_of_the_makefile_is_listed():
    chores = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(chores) >= {"help", "setup", "demo", "test", "check", "fix", "bench", "train", "docs"}
    for chore in chores:
        assert re.search(rf"^{chore}:.*## \S", (ROOT / "Makefile").read_text(), re.M), chore


@pytest.mark.parametrize("name", ["demo", "question", "shortcut"])
def test_the_readmes_pictures_are_the_demos(name):
    """Drawn anew they are the same, but for the last digit of a float that falls on the other side of a colour."""
    drawn = {
        "demo": lambda: demonstration.heat_by_layer().panel(),
        "question": lambda: demonstration.heat_by_car().explanations.panel(),
        "shortcut": lambda: demonstration.marked_panel(demonstration.marked_pictures()),
    }[name]()
    with Image.open(ROOT / "docs" / "images" / f"{name}.png") as shown:
        assert shown.size == drawn.size
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(drawn)).mean() < 0.1
    assert f"docs/images/{name}.png" in (ROOT / "README.md").read_text()
