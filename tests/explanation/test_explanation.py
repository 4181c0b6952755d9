import dataclasses
import io
import json
from typing import get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as some
from hypothesis.extra.numpy import arrays
from PIL import Image

import glowmap
from glowmap.cautions import CautionKind
from glowmap.errors import InputError, OutputError
from glowmap.explanation.explanation import Explanation
from glowmap.explanation.maps import min_max
from glowmap.explanation.tiles import heat_tile, picture_tile
from glowmap.inputs import Picture
from glowmap.render import Style, StyleOptions
from tiny_models.convolutional import Classifier, ColourSegmenter, Segmenter, images


def values(shares):
    return [share.value for share in shares]


def of(raw, size=(8, 8), **fields):
    raw = torch.as_tensor(raw, dtype=torch.float32)
    known = {"scores": torch.zeros(len(raw)), "layer": "layer", "method": "grad_cam", "model": "Model"}
    known |= {"target_names": ("class 1",) * len(raw), "input_size": size}
    return Explanation(raw, **(known | fields))


@pytest.fixture(scope="module")
def explained():
    torch.manual_seed(2)
    model = glowmap.load(Segmenter().eval(), mean=0.5, std=0.25, classes=["sky", "road", "car", "bus", "tree"])
    picture = np.random.default_rng(1).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    mask = np.ones((24, 32))
    return glowmap.explain(
        model,
        [picture, picture[:, ::-1]],
        target=[glowmap.targets.Pixels(name, mask) for name in ("road", "car")],
        layer=["encoder.0", "encoder.2"],
    )


def test_heatmap_is_relu_then_bilinear_then_min_max():
    raw = torch.randn(3, 4, 5)
    wanted = F.interpolate(raw.clamp_min(0)[:, None], (9, 13), mode="bilinear", align_corners=False)[:, 0]
    wanted = torch.stack([(one - one.min()) / (one.max() - one.min()) for one in wanted])
    explanation = of(raw, (9, 13))
    torch.testing.assert_close(explanation.heatmap, wanted)
    assert explanation.limits(1)[0] >= 0
    assert explanation.limits(1)[1] == pytest.approx(
        float(F.interpolate(raw[1:2, None].clamp_min(0), (9, 13), mode="bilinear").max())
    )


@pytest.mark.parametrize("value", [0.0, -3.0, 5.0, 1e30, 1e-30])
def test_a_flat_map_is_a_zero_heatmap_and_never_nan(value):
    assert not of(torch.full((2, 3, 3), value)).heatmap.any()


@given(
    arrays(np.float32, (2, 3, 4), elements=some.floats(-1000, 1000, width=32)), some.sampled_from([1e-12, 1.0, 1e12])
)
def test_heatmaps_fill_zero_to_one_at_any_magnitude(raw, scale):
    heat = of(torch.from_numpy(raw) * scale).heatmap
    assert heat.isfinite().all()
    for one in heat:
        assert one.min() == 0
        assert one.max() in (0, 1)


def test_the_share_of_the_heat_inside_a_mask():
    raw = [[[3.0, -5.0], [1.0, 4.0]], [[0.0, 0.0], [2.0, -1.0]], [[-1.0, 0.0], [0.0, 0.0]]]
    maps = of(raw, (6, 6))
    assert values(maps.share(np.array([[1, 0], [0, 1]]))) == pytest.approx(
        [7 / 8, 0, 0]
    )  # the blank one has no heat to share
    each = [[[1, 0], [0, 0]], [[0, 0], [1, 0]], [[1, 1], [1, 1]]]
    shares = maps.share(np.array(each))
    assert shares == maps.share([torch.tensor(one) for one in each])
    assert values(shares) == pytest.approx([3 / 8, 1, 0])
    # at a finer mask's resolution the heat is what the heatmap shows, before min-max
    left = torch.zeros(12, 12)
    left[:, :6] = 255
    fine = F.interpolate(torch.tensor(raw)[:1, None].relu(), (12, 12), mode="bilinear")[0, 0]
    assert maps.share(left)[0].value == pytest.approx(float(fine[:, :6].sum() / fine.sum()))


def test_a_diverging_colormap_shows_evidence_against_too():
    picture = Picture(Image.new("RGB", (60, 20), (40, 90, 40)), (0.0, 0.0, 60.0, 20.0))
    maps = of([[[-2.0, 0.0, 2.0]]], (20, 60), pictures=(picture,))
    signed = np.asarray(maps.overlay(colormap="signed", opacity=1.0)).astype(int)
    against, nothing, in_favour = signed[10, 4], signed[10, 30], signed[10, 55]
    assert against[2] > against[0] + 40  # blue
    assert in_favour[0] > in_favour[2] + 40  # red
    assert nothing[1] > max(nothing[0], nothing[2])  # the picture's own green
    tile = heat_tile(maps, 0, "", Style(colormap="signed"))
    assert (tile.bar.low, tile.bar.high) == ("-2", "2")
    blank = of([[[0.0, 0.0]]], (20, 60), pictures=(picture,))
    assert blank.overlay(colormap="signed").size == (60, 20)


def test_a_mask_of_the_pictures_size_is_cropped_like_the_picture():
    picture = Picture(Image.new("RGB", (4, 2)), (2.0, 0.0, 4.0, 2.0))  # the right half
    maps = of([[[1.0, 2.0], [3.0, 4.0]]], (2, 2), pictures=(picture,))
    mask = np.array([[1, 1, 0, 1], [1, 1, 0, 0]])
    assert values(maps.share(mask)) == pytest.approx([2 / 10])


def test_a_padded_picture_is_stored_without_padding(tmp_path):
    """A picture of 2 x 2 with two black columns at its left."""
    picture = Picture(Image.new("RGB", (2, 2), (200, 100, 50)), (-2.0, 0.0, 2.0, 2.0))
    maps = of([[[1.0, 2.0, 3.0, 4.0]] * 2], (2, 4), pictures=(picture,))
    masks = {(2, 2): 7 / 10, (2, 4): 1.0}  # the picture's own size, and that of what the model saw
    explanation = Explanation.load(maps.save(tmp_path / "padded.npz"))
    for one in (maps, explanation):
        for size, share in masks.items():
            assert values(one.share(np.ones(size))) == pytest.approx([share])
        assert values(one.share(np.array([[0, 1], [0, 0]]))) == pytest.approx([2 / 10])
        assert one.pictures[0].visible == (-2.0, 0.0, 2.0, 2.0)
        assert one.pictures[0].image.size == (2, 2)
        assert np.asarray(one.pictures[0].visible_part())[0].tolist() == [[0, 0, 0]] * 2 + [[200, 100, 50]] * 2
        assert "the part that the model saw" not in picture_tile(one, 0, "", Style()).caption
    cut = of(maps.raw, (2, 4), pictures=(Picture(picture.image, (-2.0, 0.0, 2.0, 1.0)),))
    assert "the part that the model saw" in picture_tile(cut, 0, "", Style()).caption
    assert explanation.overlay().tobytes() == maps.overlay().tobytes()


def test_a_file_that_holds_a_padded_picture_can_be_read(tmp_path):
    """The picture is stored on its canvas, and its visible part in pixels of the canvas."""
    canvas = Picture(Image.new("RGB", (4, 2)), (0.0, 0.0, 4.0, 2.0))
    maps = of([[[1.0, 2.0, 3.0, 4.0]] * 2], (2, 4), pictures=(canvas,))
    path = maps.save(tmp_path / "canvas.npz")
    with np.load(path) as stored:
        described = json.loads(str(stored["explanations"]))
    assert described[0]["pictures"] == [[0, [0.0, 0.0, 4.0, 2.0]]]
    explanation = Explanation.load(path)
    assert explanation.overlay().size == (4, 2)
    assert values(explanation.share(np.array([[0, 0, 1, 1]] * 2))) == pytest.approx([7 / 10])


def test_a_share_stands_beside_chance():
    maps = of([[[3.0, 1.0], [0.0, 0.0]]], size=(2, 2))
    (inside,) = maps.share(np.array([[1, 0], [0, 0]]))
    assert (inside.value, inside.chance, inside.lift) == pytest.approx((3 / 4, 1 / 4, 3.0))
    (empty,) = maps.share(np.zeros((2, 2)))
    assert (empty.value, empty.chance) == (0, 0)
    assert np.isnan(empty.lift)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.ones(4),
            "a mask of 4 does not fit 2 images of 8 x 8; give one of the picture's size, or one for each image",
        ),
        (np.ones((3, 4, 4)), "3 masks do not fit 2 images of 8 x 8"),
        ([np.ones((4, 4))], "1 mask does not fit 2 images"),
        (np.ones((0, 4)), "a mask of 0 x 4 does not fit"),
    ],
)
def test_a_mask_that_fits_no_image_is_an_error(mask, message):
    with pytest.raises(InputError, match=message):
        of(torch.rand(2, 3, 3)).share(mask)


def test_min_max_ignores_rounding_noise():
    noisy = torch.full((1, 4, 4), 0.3) + torch.randn(1, 4, 4) * 1e-8
    assert not min_max(noisy).any()
    assert min_max(noisy - 0.3).max() in (0, 1)


def test_cautions_say_why_a_map_is_blank():
    model = Classifier().eval()
    positive = glowmap.explain(model, images(1), target=lambda out: out[:, 0], layer="features.4")
    negative = glowmap.explain(model, images(1), target=lambda out: -out[:, 0], layer="features.4")
    blank = positive if positive.raw.max() <= 0 else negative
    for one in (positive, negative):
        assert ("no positive value" in " ".join(one.cautions)) == (not one.heatmap.any())
    torch.testing.assert_close(positive.raw, -negative.raw)
    assert blank is not None


def test_single_images_can_be_selected(explained):
    both = explained[0]
    assert len(both) == 2
    second = both[1]
    assert torch.equal(second.raw[0], both.raw[1])
    assert torch.equal(second.heatmap[0], both.heatmap[1])
    assert second.pictures == both.pictures[1:]
    assert torch.equal(second.prediction.labels[0], both.prediction.labels[1])
    assert torch.equal(both[-1].raw, second.raw)
    assert [one.scores.item() for one in both] == both.scores.tolist()
    with pytest.raises(IndexError, match="there is no image 2: the batch has 2 images, counted from 0"):
        both[2]


def test_the_overlay_lies_on_the_picture_at_its_own_resolution(explained):
    picture = explained[0].pictures[1].image
    assert np.array_equal(np.asarray(explained[0].overlay(1, opacity=0.0)), np.asarray(picture))
    hot = np.asarray(explained[0].overlay(1, opacity=1.0))
    row, column = np.unravel_index(int(explained[0].heatmap[1].argmax()), (24, 32))
    from glowmap.render import COLORMAPS

    assert hot[row, column].tolist() == COLORMAPS["glow"][-1].tolist()
    with pytest.raises(OutputError, match="no colormap 'jett'; near names: jet"):
        explained[0].overlay(colormap="jett")


def test_the_panel_has_a_row_for_each_target_and_image(explained):
    one_row = explained[0][0].panel()
    two_layers = glowmap.Explanations([explained[0][0], explained[1][0]]).panel()
    all_of_it = explained.panel()
    assert one_row.width < two_layers.width == all_of_it.width
    assert two_layers.height < all_of_it.height / 3
    assert all_of_it.tobytes() == explained.panel().tobytes()


def test_reprs(explained):
    assert repr(explained[1]) == ("<Explanation of 'road (mask)' by hires_cam at encoder.2 (6 x 8), 2 images>")
    shown = Image.open(io.BytesIO(explained._repr_png_()))
    assert shown.size == explained.panel().size
    assert Image.open(io.BytesIO(explained[0]._repr_png_())).size == explained[0].panel().size


def test_a_notebook_shows_the_picture(explained):
    formatters = pytest.importorskip("IPython.core.formatters")
    bundle, _ = formatters.DisplayFormatter().format(explained[0])
    assert set(bundle) == {"text/plain", "image/png"}
    signal, _ = formatters.DisplayFormatter().format(of(torch.randn(1, 6), (12,)))
    assert set(signal) == {"text/plain"}


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "pdf"])
def test_saving_the_panel(explained, tmp_path, ending):
    path = explained.save(tmp_path / f"panel.{ending}")
    assert path.read_bytes()[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0", b"RIFF", b"II*\x00", b"%PDF")
    if ending == "png":
        assert Image.open(io.BytesIO(path.read_bytes())).size == explained.panel().size
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_cautions_keep_their_code_and_level_in_a_file(tmp_path):
    blank = CautionKind("blank-map", "caution", "Explain another layer.")
    runs = CautionKind("several-runs", "info", "Name a run.")
    explanation = of(torch.rand(1, 2, 2), cautions=(blank("the map is blank"), runs("the layer ran twice")))
    found = Explanation.load(explanation.save(tmp_path / "map.npz"))
    assert found.cautions == explanation.cautions
    assert (found.cautions[0].code, found.cautions[0].level, found.cautions[0].kind) == ("blank-map", "caution", blank)
    assert (found.cautions[1].code, found.cautions[1].level, found.cautions[1].kind) == ("several-runs", "info", runs)


def test_saving_the_numbers_and_reading_them_back(explained, tmp_path):
    found = glowmap.Explanations.load(explained.save(tmp_path / "numbers.npz"))
    assert len(found) == len(explained)
    for one, other in zip(explained, found, strict=True):
        for field in ("raw", "scores", "heatmap"):
            assert torch.equal(getattr(one, field), getattr(other, field))
        for field in ("layer", "method", "model", "target_names", "input_size", "cautions"):
            assert getattr(one, field) == getattr(other, field)
        assert torch.equal(one.prediction.labels, other.prediction.labels)
    assert found.panel().tobytes() == explained.panel().tobytes()
    single = glowmap.Explanation.load(explained[1].save(tmp_path / "one.npz"))
    assert torch.equal(single.raw, explained[1].raw)
    with np.load(tmp_path / "numbers.npz") as stored:
        assert json.loads(str(stored["explanations"]))[0]["layer"] == "encoder.0"
        assert sum(name.startswith("picture") for name in stored) == 2  # stored once, not once an explanation


def test_a_file_of_another_kind_is_refused(explained, tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "text.npz").write_text("hello")
    for name in ("other.npz", "text.npz", "missing.npz"):
        with pytest.raises(InputError, match=f"{name} is not a file of explanations"):
            glowmap.Explanations.load(tmp_path / name)
    with pytest.raises(InputError, match="holds 4 explanations; read them with Explanations.load"):
        glowmap.Explanation.load(explained.save(tmp_path / "four.npz"))


def test_a_failed_write_leaves_no_file(explained, tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="ends in .xyz, which is no format for a panel; end it in .png"):
        explained.save(tmp_path / "panel.xyz")
    with pytest.raises(OutputError, match="panel has no ending"):
        explained.save(tmp_path / "panel")
    with pytest.raises(OutputError, match="cannot be written .*; choose a folder that exists"):
        explained.save(tmp_path / "nowhere" / "panel.png")
    old = tmp_path / "panel.png"
    old.write_text("old")

    def half(self, stream, **_):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OutputError, match="disk full"):
        explained.save(old)
    monkeypatch.undo()
    before = old.stat().st_ino
    explained.save(old)
    assert old.stat().st_ino != before, "written over in place: a reader, or a power cut, sees half a file"
    old.write_text("old")
    assert old.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["panel.png"]


def test_an_explanation_without_pictures_has_numbers():
    signal = of(torch.randn(2, 6), (12,))
    assert signal.heatmap.shape == (2, 12)
    with pytest.raises(
        OutputError, match=r"no picture of the input \(of 1 spatial axes\) to draw on; use .heatmap or .raw"
    ):
        signal.overlay()
    with pytest.raises(OutputError, match="nothing|no explanations"):
        glowmap.Explanations([]).panel()


def test_a_classifiers_prediction_is_kept():
    model = Classifier().eval()
    explanation = glowmap.explain(model, images(), target=1, layer="features.4")
    torch.testing.assert_close(explanation.prediction.probabilities, model(images()).softmax(1).detach())
    assert explanation.prediction.names == ("class 0", "class 1", "class 2", "class 3")
    assert explanation.panel().width > 700


def test_dense_predictions_are_labels():
    batch = images(1).abs()
    explanation = glowmap.explain(ColourSegmenter(), batch, target=[2], layer="layer")[0]
    assert torch.equal(explanation.prediction.labels, batch.flip(1).argmax(1))


def test_a_map_finer_than_the_input_loses_no_cell():
    raw = torch.zeros(1, 64, 64)
    raw[0, 35, 20] = 1
    heat = of(raw, (8, 8)).heatmap[0]
    assert heat.argmax() == 4 * 8 + 2
    assert heat.sum() == 1


def test_a_nearly_flat_map_says_why_it_is_blank():
    class Even(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, images):
            return self.layer(images).mean((2, 3))

    even = torch.full((1, 3, 4, 4), 0.3)
    even[0, 0, 0, 0] += 3e-8
    explanation = glowmap.explain(Even().eval(), even, target=0, layer="layer")
    assert not explanation.heatmap.any()
    assert "class 0 at 'layer': the raw map has the same value everywhere" in explanation.cautions[0]


def test_slices_are_smaller_batches(explained):
    part = explained[0][1:]
    assert (len(part), part.target_names, part.pictures) == (
        1,
        explained[0].target_names[1:],
        explained[0].pictures[1:],
    )
    assert torch.equal(part.raw, explained[0].raw[1:])
    with pytest.raises(IndexError, match="there is no image 5: the batch has 2 images"):
        explained[0].overlay(5)


def test_bfloat16_numbers_can_be_saved(tmp_path):
    model = Classifier().eval().bfloat16()
    explanation = glowmap.explain(model, images().bfloat16(), target=1, layer="features.3")
    assert torch.equal(Explanation.load(explanation.save(tmp_path / "half.npz")).scores, explanation.scores)


def test_a_link_stays_a_link_and_long_names_are_refused(explained, tmp_path):
    (tmp_path / "real.npz").write_text("old")
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    explained.save(tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    assert len(glowmap.Explanations.load(tmp_path / "real.npz")) == 4
    assert explained.save(tmp_path / ("n" * 250 + ".npz")).exists()
    with pytest.raises(OutputError, match="File name too long"):
        explained.save(tmp_path / ("n" * 300 + ".png"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "real.npz").read_bytes()[:500])
    with pytest.raises(InputError, match="is not a file of explanations"):
        glowmap.Explanations.load(tmp_path / "cut.npz")


class TestLayout:
    """The arrangement of a figure: nothing is repeated, and each tile names what differs from the others."""

    @pytest.fixture
    def drawn(self, monkeypatch):
        drawn = []

        def panel(rows, **words):
            drawn.append(([[tile.heading for tile in row] for row in rows], words["title"], rows))
            return Image.new("RGB", (9, 9))

        monkeypatch.setattr("glowmap.explanation.figure.panel", panel)
        return drawn

    @pytest.fixture
    def model(self):
        return glowmap.load(Classifier().eval(), mean=0.5, classes=["lynx, catamount", "dog", "car", "bus"])

    picture = np.random.default_rng(0).random((16, 20, 3))

    def test_one_target_at_one_layer(self, model, drawn):
        glowmap.explain(model, self.picture, target="catamount", layer="features.3").panel()
        headings, title, rows = drawn[0]
        assert headings == [["picture", "prediction", "features.3"]]
        assert title == "lynx · grad_cam · Classifier"
        assert rows[0][2].caption[0] == "grid 4 × 5"

    def test_targets_at_one_layer_follow_the_picture_which_is_drawn_once(self, model, drawn):
        explanations = glowmap.explain(model, self.picture, target=["dog", "lynx", "car", "bus"], layer="features.3")
        explanations.panel()
        headings, title, rows = drawn[0]
        assert headings == [["picture", "prediction", "dog", "lynx", "car", "bus"]]
        assert title == "4 targets · grad_cam at features.3 · Classifier"
        assert rows[0][0].caption == ()
        score = explanations[1].scores.item()
        assert rows[0][3].caption[0] == f"score {score:.3g}, grid 4 × 5"

    def test_each_image_of_a_batch_has_its_own_rows(self, model, drawn):
        explanations = glowmap.explain(model, [self.picture, self.picture[::-1]], target=[1, 2], layer="features.3")
        explanations.panel()
        headings, title, rows = drawn[0]
        assert headings == [["picture", "prediction", "dog", "car"]] * 2
        assert title == "dog, car · grad_cam at features.3 · Classifier"
        assert rows[1][3].caption[0].startswith(f"score {explanations[1].scores[1].item():.3g}, ")

    def test_methods_at_one_layer_follow_the_picture_too(self, model, drawn):
        """Also where they come from two calls, each with an equal picture."""
        calls = [
            glowmap.explain(model, self.picture, target="catamount", layer="features.3", method=method)
            for method in ("grad_cam", "layer_cam")
        ]
        glowmap.Explanations(calls).panel()
        glowmap.explain(
            model, self.picture, target="lynx", layer="features.3", method=["grad_cam", "layer_cam"]
        ).panel()
        for headings, title, rows in drawn:
            assert headings == [["picture", "prediction", "grad_cam", "layer_cam"]]
            assert title == "lynx · grad_cam, layer_cam at features.3 · Classifier"
            assert rows[0][0].caption[0].startswith("lynx, catamount, score ")
            assert rows[0][2].caption[0] == "grid 4 × 5"

    def test_targets_by_several_methods_have_a_row_each(self, model, drawn):
        explanation = glowmap.explain(
            model, self.picture, target=["dog", "car"], layer="features.3", method=["grad_cam", "layer_cam"]
        )
        explanation.panel()
        assert drawn[0][0] == [
            ["picture", "prediction"],
            ["dog · grad_cam", "dog · layer_cam"],
            ["car · grad_cam", "car · layer_cam"],
        ]

    def test_methods_at_several_layers_have_a_row_each_below_the_picture(self, model, drawn):
        layers = ["features.0", "features.3"]
        glowmap.compare(model, self.picture, target="dog", method=["grad_cam", "layer_cam"], layer=layers).panel()
        assert drawn[0][0] == [
            ["picture", "prediction"],
            ["features.0 · grad_cam", "features.3 · grad_cam"],
            ["features.0 · layer_cam", "features.3 · layer_cam"],
        ]
        assert drawn[0][1] == "dog · grad_cam, layer_cam · Classifier"

    def test_targets_at_several_layers_have_a_row_each_with_the_picture(self, model, drawn):
        glowmap.explain(model, self.picture, target=["dog", "lynx"], layer=["features.0", "features.3"]).panel()
        assert drawn[0][0] == [
            ["dog", "prediction", "features.0", "features.3"],
            ["lynx", "prediction", "features.0", "features.3"],
        ]

    def test_a_layer_that_differs_is_named_below_the_heat(self, model, drawn):
        glowmap.explain(
            model, self.picture, target="dog", layer="features.3", method=["grad_cam", "input_gradient"]
        ).panel()
        headings, title, rows = drawn[0]
        assert headings == [["picture", "prediction", "grad_cam", "input_gradient"]]
        assert [tile.caption for tile in rows[0][2:]] == [("features.3, grid 4 × 5",), ("input, grid 16 × 20",)]
        assert title == "dog · grad_cam, input_gradient · Classifier"

    def test_other_pictures_and_other_models_have_their_own_rows(self, model, drawn):
        one = glowmap.explain(model, self.picture, target="dog", layer="features.3")
        other = glowmap.explain(model, self.picture[::-1], target="car", layer="features.3")
        glowmap.Explanations([one, other]).panel()
        torch.manual_seed(5)
        another = glowmap.load(Classifier().eval(), mean=0.5, classes=list(model.class_names))
        glowmap.Explanations(
            [one, glowmap.explain(another, self.picture, target="car", layer="features.3")]
        ).panel()  # of the same name, but it says something else
        for headings, title, _ in drawn:
            assert headings == [["dog", "prediction", "features.3"], ["car", "prediction", "features.3"]]
            assert title == "dog, car · grad_cam · Classifier"

    def test_pictures_without_prediction_are_distinguished_too(self, drawn):
        pictures = [Picture(Image.new("RGB", (60, 40), colour), (0.0, 0.0, 60.0, 40.0)) for colour in ("red", "blue")]
        for shown in (pictures, pictures[:1] * 2):
            glowmap.Explanations(
                of(torch.rand(1, 3, 3), target_names=(name,), pictures=(one,))
                for name, one in zip("ab", shown, strict=True)
            ).panel()
        assert [headings for headings, *_ in drawn] == [[["a", "layer"], ["b", "layer"]], [["picture", "a", "b"]]]

    def test_words_of_a_sentence_stand_in_reading_order_below_its_title(self, drawn):
        sentence = "'a dog, a cat and a dog'"
        asked = [sentence, *(f"'{word}' in {sentence}" for word in ("a", "dog", "a", "cat"))]
        picture = Picture(Image.new("RGB", (60, 40)), (0.0, 0.0, 60.0, 40.0))
        scores = [-8.0, -1.0, -2.0, -1.0, -4.0]
        explanations = glowmap.Explanations(
            of(torch.rand(1, 3, 3), target_names=(one,), scores=torch.tensor([score]), pictures=(picture,))
            for one, score in zip(asked, scores, strict=True)
        )
        explanations.panel()
        headings, title, rows = drawn[0]
        assert headings == [["picture", sentence, "'a'", "'dog'", "'a'", "'cat'"]]
        assert title == f"{sentence}, word by word · grad_cam at layer · Model"
        assert [tile.caption for tile in rows[0][1:]] == [
            (f"score {score:g}, grid 3 × 3",) for score in (-8, -1, -2, -1, -4)
        ]

    def test_concepts_are_counted_in_the_title(self, model, drawn):
        explanations = glowmap.concepts(model, [self.picture, self.picture[::-1]], layer="features.3", count=3)
        explanations.panel()
        assert drawn[0][1] == "3 concepts · deep_feature_factorisation at features.3 · Classifier"
        assert [len(row) for row in drawn[0][0]] == [5, 5]
        assert drawn[0][0][0][2] == explanations[0].target_names[0].replace("lynx, catamount", "lynx")

    def test_synonyms_are_dropped_and_other_commas_stay(self, model, drawn):
        questions = [
            glowmap.targets.Not("lynx"),
            glowmap.targets.Contrast("lynx", "dog"),
            glowmap.targets.Contrast("dog", "lynx"),
        ]
        glowmap.explain(model, self.picture, target=questions, layer="features.3").panel()
        assert drawn[0][0][0][2:] == ["not lynx", "lynx rather than dog", "dog rather than lynx"]

    def test_many_long_targets_are_counted_in_the_title_and_named_in_the_headings(self, drawn):
        picture = Picture(Image.new("RGB", (60, 40)), (0.0, 0.0, 60.0, 40.0))
        sentences = [f"'a photo of number {number}, {'very ' * 20}long'" for number in range(2)]
        glowmap.Explanations(
            of(torch.rand(1, 3, 3), target_names=(one,), pictures=(picture,)) for one in sentences
        ).panel()
        assert drawn[0][1] == "2 targets · grad_cam at layer · Model"
        assert drawn[0][0][0][1:] == sentences
        of(torch.rand(1, 3, 3), target_names=(sentences[0],), pictures=(picture,)).panel()
        _, title, rows = drawn[1]
        assert title == f"{sentences[0]} · grad_cam · Model"
        assert rows[0][0].caption == (sentences[0], "score 0")  # which a long sentence must not push out


class TestCanvas:
    """A map of 2 x 2 on a canvas of 8 x 12, whose upper left 6 x 10 are the input."""

    RAW = torch.tensor([[[1.0, -2.0], [3.0, 4.0]]])

    def covered(self, raw, **fields):
        return of(raw, (6, 10), canvas=(8, 12), **fields)

    def by_hand(self, cells):
        """Interpolate between the centres of cells of 4 x 6 pixels, and cut off what lies beyond the input."""
        interpolated = torch.zeros(6, 10)
        for row in range(6):
            for column in range(10):
                down, across = (min(max((at + 0.5) / cell - 0.5, 0), 1) for at, cell in ((row, 4), (column, 6)))
                upper = cells[0][0] * (1 - across) + cells[0][1] * across
                lower = cells[1][0] * (1 - across) + cells[1][1] * across
                interpolated[row, column] = upper * (1 - down) + lower * down
        return interpolated

    def test_the_heat_lies_where_it_is_on_the_canvas(self):
        wanted, explanation = self.by_hand([[1, 0], [3, 4]]), self.covered(self.RAW)
        torch.testing.assert_close(explanation.heatmap[0], (wanted - wanted.min()) / (wanted.max() - wanted.min()))
        assert explanation.limits() == pytest.approx((float(wanted.min()), float(wanted.max())))
        torch.testing.assert_close(explanation.signed(), self.by_hand([[1, -2], [3, 4]]))
        assert not torch.allclose(explanation.heatmap, of(self.RAW, (6, 10)).heatmap, atol=0.05)

    def test_shares_leave_the_padding_out(self):
        wanted = self.by_hand([[1, 0], [3, 4]])
        mask = np.zeros((6, 10))
        mask[:, :4] = 1
        assert values(self.covered(self.RAW).share(mask)) == pytest.approx([float(wanted[:, :4].sum() / wanted.sum())])

    def test_a_mask_of_the_pictures_size(self):
        picture = Picture(Image.new("RGB", (20, 12)), (0.0, 0.0, 20.0, 12.0))
        mask = np.zeros((12, 20))
        mask[6:] = 1
        fine = F.interpolate(self.by_hand([[1, 0], [3, 4]])[None, None], (12, 20), mode="bilinear")[0, 0]
        explanation = values(self.covered(self.RAW, pictures=(picture,)).share(mask))
        assert explanation == pytest.approx([float(fine[6:].sum() / fine.sum())])

    def test_fused_layers_cover_the_input(self):
        layers = [self.covered(raw, layer=name) for raw, name in ((self.RAW, "a"), (self.RAW.flip(2), "b"))]
        (together,) = glowmap.Explanations(layers).fused()
        wanted = layers[0].heatmap * layers[1].heatmap
        torch.testing.assert_close(together.heatmap, min_max(wanted))
        assert (together.grid, together.canvas) == ((6, 10), ())

    def test_the_overlay_and_its_edges(self, monkeypatch):
        pixels = np.full((60, 100, 3), 90, np.uint8)
        hot = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
        explanation = self.covered(hot, pictures=(Picture(Image.fromarray(pixels), (0.0, 0.0, 100.0, 60.0)),))
        drawn = np.asarray(explanation.overlay(opacity=1.0)).astype(int).sum(-1)
        row, column = np.unravel_index(int(drawn.argmax()), drawn.shape)
        assert row > 45
        assert column > 80
        radii = []
        monkeypatch.setattr(
            "glowmap.explanation.tiles.follow_edges", lambda heat, _, radius: radii.append(radius) or heat
        )
        explanation.overlay(edges=True)
        assert radii == [20]  # half a cell: 4 rows of the input, ten pixels of the picture each

    def test_it_is_saved_and_read_back(self, tmp_path):
        explanation = self.covered(self.RAW)
        read = Explanation.load(explanation.save(tmp_path / "canvas.npz"))
        assert read.canvas == (8, 12)
        assert torch.equal(read.heatmap, explanation.heatmap)
        assert explanation[0].canvas == (8, 12)

    def test_files_without_a_canvas_can_be_read(self, tmp_path):
        path = of(self.RAW, (6, 10)).save(tmp_path / "old.npz")
        with np.load(path) as stored:
            arrays = dict(stored)
        described = json.loads(str(arrays["explanations"]))
        for one in described:
            for later in ("canvas", "annotations", "boxes"):
                one.pop(later, None)
        np.savez(path, **(arrays | {"explanations": np.array(json.dumps(described))}))
        read = Explanation.load(path)
        assert (read.canvas, read.annotations, read.prediction) == ((), (), None)
        assert torch.equal(read.heatmap, of(self.RAW, (6, 10)).heatmap)


def test_a_panel_for_print_is_drawn_larger(explained, tmp_path):
    small, large = explained[0].panel(), explained[0].panel(scale=2)
    assert large.width == 2 * small.width
    with Image.open(explained[0].save(tmp_path / "large.png", scale=2, colormap="gray", opacity=0.3)) as saved:
        assert saved.size == large.size


def test_reprs_fit_a_line():
    model = glowmap.load(Classifier().eval(), mean=0.5, classes=["a", "b", "c", "d"])
    explanations = glowmap.explain(model, images(), target=[1], layer="features.3")
    assert repr(model) == "<Model Classifier: Classifier, 4 classes>"
    assert repr(explanations[0].prediction) == "<Prediction of 4 classes an image>"
    assert repr(explanations).startswith("<Explanations:\n  <Explanation of 'b'")


def test_the_keywords_of_drawing_are_the_fields_of_style():
    assert get_type_hints(StyleOptions) == {
        field.name: get_type_hints(Style)[field.name] for field in dataclasses.fields(Style)
    }
    for draw in (Explanation.overlay, Explanation.panel, Explanation.save):
        with pytest.raises(TypeError, match="colour"):
            draw(of(torch.rand(1, 2, 2)), *(["map.npz"] if draw is Explanation.save else []), colour="jet")


def test_an_overlay_can_be_drawn_larger_and_annotations_left_out(explained):
    assert explained[0].overlay(scale=2).size == tuple(2 * side for side in explained[0].overlay().size)
    outlined = explained[0].overlay(show_annotations=True)
    assert outlined.tobytes() != explained[0].overlay().tobytes()
    assert explained[0].panel().tobytes() == explained[0].panel(show_annotations=True).tobytes()
    assert explained[0].panel().tobytes() != explained[0].panel(show_annotations=False).tobytes()
    with pytest.raises(OutputError, match="the scale of the drawing is 0; give 1 or more"):
        explained[0].overlay(scale=0)


def test_concepts_carry_the_cautions_that_arise_while_they_are_scored():
    class Chance(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Linear(8, 3)

        def forward(self, batch):
            pooled = self.layer(batch).relu().mean((2, 3))
            return self.head(pooled + torch.randn_like(pooled))

    for concept in glowmap.concepts(Chance().eval(), torch.randn(2, 3, 16, 16), layer="layer", count=2):
        assert {"slow-reruns", "unstable-output"} <= {caution.code for caution in concept.cautions}
