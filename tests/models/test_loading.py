import sys
import urllib.error
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import glowmap
from glowmap.errors import GlowmapError, InputError, MissingExtra, ModelError
from glowmap.models.preprocessing import Transform, crop_box
from tiny_models.convolutional import Classifier, images

torchvision = pytest.importorskip("torchvision")


def test_a_module_with_preprocessing_of_its_own(street):
    model = glowmap.load(Classifier().eval(), size=(20, 30), mean=(0.1, 0.2, 0.3), std=0.5, classes=list("abcd"))
    batch = model.read([street, street])
    small = np.asarray(Image.open(street).resize((30, 20), Image.Resampling.BILINEAR)).astype(np.float64) / 255
    wanted = torch.from_numpy((small - [0.1, 0.2, 0.3]) / 0.5).permute(2, 0, 1).float()
    torch.testing.assert_close(batch.images, wanted.expand(2, -1, -1, -1))
    assert batch.pictures[0].visible_part().size == (60, 40)


def test_without_a_size_the_pictures_own_is_kept(street):
    assert glowmap.load(Classifier(), mean=0.5).read(street).images.shape == (1, 3, 40, 60)
    assert glowmap.load(Classifier(), size=32).read(street).images.shape == (1, 3, 32, 32)


def test_preprocessing_by_a_callable(street):
    """The part of the picture that the tensor shows is measured, whatever is done to its colours."""
    box = (12, 4, 48, 40)

    def preprocess(picture):
        pixels = np.asarray(picture.crop(box).resize((24, 24), Image.Resampling.BILINEAR)).astype(np.float32)
        return torch.from_numpy((pixels - [1.0, 2.0, 3.0]) / [-50.0, 60.0, -70.0]).permute(2, 0, 1).float()

    model = glowmap.load(Classifier().eval(), preprocess=preprocess)
    assert model.cautions == ()
    batch = model.read([street, street])
    assert torch.equal(batch.images, preprocess(Image.open(street).convert("RGB")).expand(2, -1, -1, -1))
    np.testing.assert_allclose(batch.pictures[0].visible, box, atol=1)
    found = glowmap.explain(model, street, target=glowmap.targets.Category(1), layer="features")
    assert found.overlay().size[0] == pytest.approx(found.overlay().size[1], abs=1)


def test_a_callable_replaces_size_mean_and_std():
    for options in ({"size": 32}, {"mean": 0.5}, {"std": 0.5}):
        with pytest.raises(InputError, match=r"preprocess replaces size, mean and std; give either preprocess"):
            glowmap.load(Classifier(), preprocess=lambda picture: picture, **options)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ("resize", "a callable from a picture to a tensor, not str; give such a callable"),
        (lambda picture: np.asarray(picture), "preprocess returned ndarray; return a floating point tensor"),
        (
            lambda picture: torch.zeros(1, 3, 8, 8),
            r"returned a torch.float32 tensor of \(1, 3, 8, 8\); .* without a batch",
        ),
        (lambda picture: torch.zeros(3, 8, 8).byte(), "returned a torch.uint8 tensor"),
        (
            lambda picture: picture.nonsense,
            "preprocess raised AttributeError: .*nonsense'; check it with a PIL picture",
        ),
        (lambda picture: torch.zeros(3, 8, 8), "something other than one rectangle of it"),
    ],
)
def test_a_callable_must_return_one_picture_as_a_tensor(street, preprocess, message):
    with pytest.raises(InputError, match=message):
        glowmap.load(Classifier(), preprocess=preprocess).read(street)


def test_no_other_librarys_family_is_entered():
    """Recognising a module calls functions of those families alone whose libraries define a part of it."""
    entered = set()

    def record(frame, event, _argument):
        if event == "call":
            entered.add(frame.f_code.co_filename.rpartition("glowmap/models/")[2])

    glowmap.load("resnet18", weights="random")  # what is imported at first use
    sys.setprofile(record)
    try:
        glowmap.load("resnet18", weights="random")
        glowmap.load(Classifier(), mean=0.5)
    finally:
        sys.setprofile(None)
    files = ("demo.py", "open_clip.py", "smp.py", "timm.py", "ultralytics.py", "transformers/family.py")
    assert "torchvision/family.py" in entered
    assert entered.isdisjoint(files)


def test_pictures_meet_the_modules_precision(street):
    assert glowmap.load(Classifier().double(), size=32).read(street).images.dtype == torch.float64


def test_tensors_go_to_a_loaded_model_as_they_are():
    model = glowmap.load(Classifier().eval(), mean=0.5, std=0.5)
    found = glowmap.explain(model, images(), target=1, layer="features")
    assert torch.equal(found.raw, glowmap.explain(model.module, images(), target=1, layer="features").raw)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, InputError, "a size of 0 has no pixels"),
        ({"std": 0.0}, InputError, "std=0.0 divides by zero"),
        ({"std": (1.0, 0.0, 1.0)}, InputError, "divides by zero"),
        ({"mean": (1.0, 2.0)}, InputError, r"mean=\(1.0, 2.0\) is not one number or three"),
        ({"mean": float("nan")}, InputError, "not one number"),
        ({"size": 60000}, InputError, "the size 60000 has 60000 x 60000 pixels"),
        ({"classes": {1: "dog", 5: "cat"}}, InputError, "class names are a list of str"),
        ({"device": "cuda:77"}, ModelError, "cannot be moved to the device 'cuda:77'"),
        ({"device": "meta"}, ModelError, "a meta device computes nothing"),
        ({"device": "foo"}, ModelError, "cannot be moved to the device 'foo'"),
        ({"classes": "nowhere.txt"}, InputError, "class names in nowhere.txt cannot be read"),
        ({"mean": 127.5}, InputError, "mean=127.5 is not in the range of colours in"),
        ({"weights": None}, ModelError, "weights are 'default', 'random' or a checkpoint's path, not None"),
        ({"weights": "random"}, ModelError, "has weights already"),
        ({"weights": "nowhere.pt"}, ModelError, "there is no weights file nowhere.pt"),
    ],
)
def test_options_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=message):
        glowmap.load(Classifier(), **options)


def test_class_names_from_a_file(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("cat\n dog \n\ncar\n\n")
    assert glowmap.load(Classifier(), classes=names).class_names == ("cat", "dog", "", "car")
    names.write_text("cat\ndog", encoding="utf-8-sig")
    assert glowmap.load(Classifier(), classes=names).class_names == ("cat", "dog")
    assert glowmap.load(Classifier(), classes={1: "dog", 0: "cat"}).class_names == ("cat", "dog")


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer4"), ("mobilenet_v3_small", "features")])
def test_torchvision_classifiers_by_name(name, layer, street):
    model = glowmap.load(name, weights="random")
    found = glowmap.explain(model, street, target="tabby", layer=layer)
    assert found.target_names == ("tabby",)
    assert found.input_size == (224, 224)
    assert "weights are random" in found.cautions[0]
    assert len(model.class_names) == 1000


def test_torchvision_segmentation_by_name(street):
    model = glowmap.load("lraspp_mobilenet_v3_large", weights="random")
    target = glowmap.targets.Pixels("car", np.ones((40, 60)))
    found = glowmap.explain(model, street, target=target, layer="backbone.16")
    assert found.input_size == (520, 780)
    assert found.overlay().size == (60, 40)
    assert found.raw.any()


def test_random_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (glowmap.load("resnet18", weights="random", seed=s).module for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_another_size_keeps_the_presets_mean_and_std(street):
    preset = glowmap.load("resnet18", weights="random").preprocess
    model = glowmap.load("resnet18", weights="random", size=(40, 60))
    assert (
        (model.preprocess.mean, model.preprocess.std)
        == (preset.mean, preset.std)
        == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    assert model.read(street).images.shape == (1, 3, 40, 60)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (97, 211), (224, 224)])
def test_the_part_of_the_picture_that_a_preset_keeps(size):
    """A picture whose colours are its coordinates: the corners of the tensor say what was kept."""
    width, height = size
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    picture = Image.fromarray(np.dstack([across, down, down * 0]).round().astype(np.uint8))
    model = glowmap.load("resnet18", weights="random")
    batch = model.read(picture)
    values = (
        batch.images[0] * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    )
    left, top, right, bottom = batch.pictures[0].visible
    step = 224 / (right - left)
    wanted = [
        (left + 0.5 / step) / width,
        (right - 0.5 / step) / width,
        (top + 0.5 / step) / height,
        (bottom - 0.5 / step) / height,
    ]
    found = [values[0, :, 0].mean(), values[0, :, -1].mean(), values[1, 0].mean(), values[1, -1].mean()]
    np.testing.assert_allclose(found, wanted, atol=1.5 / min(size))
    assert batch.pictures[0].visible_part().size == (round(right) - round(left), round(bottom) - round(top))


def test_what_a_preset_pads_lies_outside_the_picture():
    from torchvision import transforms

    def read(size, *steps):
        steps = transforms.Compose([*steps, transforms.ToTensor()])
        given = Image.new("RGB", size, (10, 20, 30))
        values, picture = Transform(steps, partial(crop_box, steps.transforms))(given)
        assert picture.image is given
        shown = transforms.functional.to_tensor(picture.visible_part())
        assert values.shape != shown.shape or torch.equal(values, shown)  # black where it is black
        return picture.visible, picture.visible_part().size

    assert read((40, 41), transforms.CenterCrop(64)) == ((-12, -11, 52, 53), (64, 64))
    assert read((40, 81), transforms.CenterCrop(64)) == ((-12, 8, 52, 72), (64, 64))
    assert read((40, 30), transforms.Resize((60, 80)), transforms.CenterCrop(100)) == ((-5, -10, 45, 40), (50, 50))
    # less than half a pixel of the picture is rounding
    assert read((10, 10), transforms.Resize(223), transforms.CenterCrop(224)) == ((0, 0, 10, 10), (10, 10))


def test_checkpoints_of_both_kinds(tmp_path):
    trained = Classifier()
    torch.save(trained.state_dict(), tmp_path / "plain.pt")
    torch.save({"state_dict": trained.state_dict(), "epoch": 3}, tmp_path / "wrapped.pth")
    torch.save({f"module.{key}": value for key, value in trained.state_dict().items()}, tmp_path / "parallel.pt")
    save_file(trained.state_dict(), tmp_path / "safe.safetensors")
    for name in ("plain.pt", "wrapped.pth", "parallel.pt", "safe.safetensors"):
        model = Classifier()
        glowmap.load(model, weights=tmp_path / name)
        assert torch.equal(model.head.weight, trained.head.weight), name


class Exploding:
    def __reduce__(self):
        return pytest.fail, ("a stranger's code ran",)


def test_checkpoints_that_are_refused(tmp_path):
    torch.save({"weights": Exploding()}, tmp_path / "code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"other.weight": torch.ones(2), "head.weight": torch.ones(4, 8)}, tmp_path / "other.pt")
    torch.save(Classifier(classes=7).state_dict(), tmp_path / "classes.pt")
    (tmp_path / "broken.pt").write_bytes(b"\x80hello")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "broken.safetensors").write_bytes(b"hello")
    for name, message in {
        "text.pt": "text.pt is not a checkpoint",
        "code.pt": "holds more than tensors, which could run a stranger's code",
        "list.pt": "is not a state dict",
        "other.pt": r"tensors are missing \(.*\), 1 are unknown \(other.weight\)",
        "classes.pt": "do not fit this Classifier: .*size mismatch for head.bias",
        "broken.pt": "damaged or of another kind|holds more than tensors",
        "broken.safetensors": "damaged or of another kind",
    }.items():
        with pytest.raises(ModelError, match=message):
            glowmap.load(Classifier(), weights=tmp_path / name)


def test_models_from_a_file_of_ones_own(tmp_path, street):
    (tmp_path / "neighbour.py").write_text("CLASSES = 4\n")
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\nfrom torch import nn\nfrom neighbour import CLASSES\n"
        "def tiny(): return nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()\n"
        "def fails(): raise OSError('no weights')\n"
        "def number(): return 3\n"
    )
    model = glowmap.load(f"{own}:tiny", classes=list("abcd"))
    assert glowmap.explain(model, street, target="c", layer="0").grid == (38, 58)
    assert model.name == "tiny"
    for reference, message in {
        f"{own}:tinny": "no factory 'tinny' in .*own.py; near names: tiny",
        f"{own}:fails": "the factory .* raised OSError: no weights",
        f"{own}:number": "returned int; return a torch.nn.Module",
        f"{own}": "names a file but no factory in it; write .*own.py:factory",
        f"{tmp_path}/other.py:tiny": "there is no file .*other.py",
    }.items():
        with pytest.raises(ModelError, match=message):
            glowmap.load(reference)
    own.write_text("1 / 0")
    with pytest.raises(ModelError, match="importing .*own.py raised ZeroDivisionError"):
        glowmap.load(f"{own}:tiny")


def test_unknown_names_get_the_near_ones():
    with pytest.raises(ModelError, match=r"no model 'resnet51' in torchvision; near names: resnet"):
        glowmap.load("resnet51")


def test_default_weights_are_loaded_where_they_are(monkeypatch, street):
    trained = torchvision.models.resnet18(weights=None)
    asked = []

    def cached(url, *_, **__):
        asked.append(url)
        return trained.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", cached)
    model = glowmap.load("resnet18")
    assert asked == [torchvision.models.ResNet18_Weights.DEFAULT.url]
    assert torch.equal(model.module.conv1.weight, trained.conv1.weight)
    assert glowmap.explain(model, street, layer="layer4").cautions == ()


def test_no_network_says_which_file_to_put_where(monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    with pytest.raises(
        ModelError, match=rf"cannot be downloaded .*; put {url} into .*checkpoints, or choose weights='random'"
    ):
        glowmap.load("resnet18")


def test_a_missing_torchvision_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        MissingExtra, match=r'needs torchvision, which is not installed; pip install "glowmap\[torchvision\]"'
    ):
        glowmap.load("resnet18")


def test_what_is_no_model():
    with pytest.raises(GlowmapError, match=r"for a name write glowmap.load\(name\)"):
        glowmap.models.as_model("resnet18")


def test_a_model_that_raises_is_named_with_its_input():
    with pytest.raises(
        ModelError,
        match=r"Classifier raised RuntimeError: .*; check that it takes an input of 2 x 5 x 16 x 20 \(float32 on cpu\)",
    ):
        glowmap.explain(Classifier(), images(colours=5), target=0, layer="features")


def test_nan_in_the_maps_is_named_with_its_place():
    model = Classifier().eval()
    model.features[3].weight.data[0] = torch.nan
    with pytest.raises(
        ModelError, match=r"NaN or infinity in the activations of layer 'features.3' for image 0, 1; look for"
    ):
        glowmap.explain(
            model,
            images(),
            target=lambda out: torch.nan_to_num(out)[:, 0] + out[:, 0].detach().nan_to_num(),
            layer="features.3",
        )


def test_another_mean_keeps_the_presets_cut(street):
    preset = glowmap.load("resnet18", weights="random")
    model = glowmap.load("resnet18", weights="random", mean=0.5, std=(1.0, 2.0, 4.0))
    batch, own = model.read(street), preset.read(street)
    assert batch.pictures[0].visible == own.pictures[0].visible
    colours = (
        own.images * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    )
    torch.testing.assert_close(batch.images, (colours - 0.5) / torch.tensor([1.0, 2.0, 4.0])[:, None, None])
    assert preset.preprocess.mean == [0.485, 0.456, 0.406]


def test_a_strip_that_would_fill_the_memory_is_refused():
    with pytest.raises(InputError, match="resized for this model, has 15360000 x 256 pixels"):
        glowmap.load("resnet18", weights="random").read(Image.new("RGB", (60000, 1)))


def test_several_pictures_may_come_as_a_tuple(street):
    assert len(glowmap.load(Classifier(), size=32).read((street, street)).images) == 2


def test_a_file_of_ones_own_may_hold_dataclasses(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Options:\n    width: int = 4\n"
        "def tiny(): return nn.Conv2d(3, Options().width, 3)\n"
    )
    assert glowmap.load(f"{own}:tiny").module.out_channels == 4


def test_detectors_that_pad_their_input_come_with_a_note():
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class Detector(Classifier):
        def __init__(self):
            super().__init__()
            self.transform = GeneralizedRCNNTransform(32, 64, [0.0] * 3, [1.0] * 3)

        def forward(self, images):
            return super().forward(self.transform(list(images))[0].tensors)

    found = glowmap.explain(Detector().eval(), images().abs(), target=1, layer="features")
    assert "the map covers the padded input" in found.cautions[0]


def test_pictures_without_mean_and_std_are_noted(street):
    whole = glowmap.targets.Category(1)
    (caution,) = glowmap.explain(glowmap.load(Classifier().eval()), street, target=whole, layer="features").cautions
    assert "no mean and std were given" in caution
    assert (
        glowmap.explain(glowmap.load(Classifier().eval(), mean=0.5), street, target=whole, layer="features").cautions
        == ()
    )
