"""Annotations and detections: points, boxes and regions in known positions, drawn there."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

import glowmap
from glowmap.errors import TargetError
from glowmap.explanation.explanation import Explanation, Explanations
from glowmap.explanation.tiles import picture_tile, prediction_tiles
from glowmap.inputs import uncropped
from glowmap.outputs import Candidates, DetectedBox, Prediction
from glowmap.render import LabelledBox, Style, label_colour, outlined, paint_boxes
from glowmap.render.outlines import DARK, LIGHT
from glowmap.targets import Annotation, At, Contrast, Detection, Not, Object, PerImage, Pixels, Point, Target
from tiny_models.convolutional import Classifier, ColourSegmenter, images

GROUNDS = [(255, 255, 255), (128, 128, 128), (0, 0, 0), (255, 220, 120), (120, 20, 60)]


def plain(colour=(128, 128, 128), size=(100, 80)):
    return Image.new("RGB", size, colour)


def pixels(image):
    return np.asarray(image).astype(int)


def changed(before, after):
    return (pixels(before) != pixels(after)).any(axis=-1)


def near(found, colour, by=60):
    return np.abs(np.asarray(found) - np.array(colour)).max() <= by


class TestOutlines:
    @pytest.mark.parametrize("ground", GROUNDS)
    def test_a_box_is_a_light_line_between_dark_ones_on_any_ground(self, ground):
        shown = pixels(outlined(plain(ground), [(0.2, 0.25, 0.8, 0.75)], 1))
        for line in (shown[40, 20], shown[40, 80], shown[20, 50], shown[60, 50]):
            assert line.tolist() == list(LIGHT)
        for line in (shown[40, 19], shown[40, 21], shown[40, 79], shown[40, 81], shown[19, 50], shown[61, 50]):
            assert line.max() < 130, "the dark line beside the light one"
        assert not changed(plain(ground), outlined(plain(ground), [(0.2, 0.25, 0.8, 0.75)], 1))[24:57, 24:77].any()
        assert shown[40, 10].tolist() == shown[40, 90].tolist() == list(ground)

    def test_a_point_is_a_cross_in_a_circle_with_a_gap_at_the_point(self):
        picture = plain()
        shown = outlined(picture, [(0.505, 0.50625)], 1)  # the middle of the pixel at column 50, row 40
        differs = changed(picture, shown)
        assert not differs[40, 50]
        for row, column in [(40, 58), (40, 42), (32, 50), (48, 50), (40, 55), (45, 50)]:
            assert near(pixels(shown)[row, column], LIGHT)
        rows, columns = np.nonzero(differs)
        assert abs(rows.min() + rows.max() - 80) <= 1
        assert abs(columns.min() + columns.max() - 100) <= 1
        assert np.hypot(rows - 40, columns - 50).max() <= 11
        assert not differs[36, 54], "between the arms the picture is seen"

    @pytest.mark.parametrize("cell", [4, 20])  # small cells have their corners rounded, large ones are as they are
    def test_the_border_of_a_region_lies_between_its_cells_and_the_others(self, cell):
        region = np.zeros((160 // cell, 200 // cell), bool)
        region[40 // cell : 120 // cell, 60 // cell : 140 // cell] = True
        picture = plain(size=(200, 160))
        differs = changed(picture, outlined(picture, [region], 1))
        rows, columns = np.nonzero(differs)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (38, 121, 58, 141)
        assert not differs[42:118, 66:134].any()
        assert not differs[46:114, 62:138].any()
        assert differs[80, 59:61].all()
        assert differs[39:41, 100].all()
        if cell == 20:
            assert differs[39:41, 59:61].all()

    @pytest.mark.parametrize(("rows", "columns"), [(8, 10), (16, 10), (8, 20)])  # cells of 20 x 20, 10 x 20 and 20 x 10
    def test_every_cell_of_a_border_is_drawn(self, rows, columns):
        region = np.random.default_rng(0).random((rows, columns)) > 0.5
        picture = plain(size=(200, 160))
        differs = changed(picture, outlined(picture, [region], 1))
        high, wide = 160 // rows, 200 // columns
        for row in range(rows):
            for column in range(columns):
                down, across = row * high + high // 2, column * wide + wide // 2
                assert not differs[down, across]
                if column < columns - 1:
                    between = differs[down, (column + 1) * wide - 1 : (column + 1) * wide + 1]
                    assert between.all() == between.any() == (region[row, column] != region[row, column + 1])
                if row < rows - 1:
                    between = differs[(row + 1) * high - 1 : (row + 1) * high + 1, across]
                    assert between.all() == between.any() == (region[row, column] != region[row + 1, column])

    def test_shapes_at_the_edge_or_beyond_are_visible(self):
        picture = plain()
        differs = changed(picture, outlined(picture, [(-0.5, -0.5, 1.5, 1.5)], 1))
        assert differs[:2, 2:-2].all()
        assert differs[2:-2, -2:].all()
        assert not differs[5:-5, 5:-5].any()
        whole_of_it = changed(picture, outlined(picture, [np.ones((4, 5), bool)], 1))
        assert whole_of_it[0].all()
        assert not whole_of_it[3:-3, 3:-3].any()
        assert changed(picture, outlined(picture, [(0.0, 0.0)], 1))[:8, :8].any()

    def test_lines_grow_with_a_picture_outside_a_figure(self):
        small, large = (outlined(plain(size=size), [(0.25, 0.25, 0.75, 0.75)]) for size in [(400, 320), (2000, 1600)])
        widths = [int((pixels(one)[one.height // 2] != 128).any(axis=-1).sum()) for one in (small, large)]
        assert widths[1] >= 3.5 * widths[0]

    def test_the_picture_is_not_changed_in_place(self):
        picture = plain()
        before = picture.tobytes()
        assert outlined(picture, [], 1).tobytes() == before
        outlined(picture, [(0.5, 0.5)], 1)
        paint_boxes(picture, [LabelledBox((0.1, 0.1, 0.5, 0.5), "0 car", 0)])
        assert picture.tobytes() == before


class TestBoxes:
    def test_a_box_has_its_classes_colour_and_a_label_on_that_colour(self):
        shown = pixels(paint_boxes(plain(size=(300, 200)), [LabelledBox((0.2, 0.3, 0.8, 0.9), "0 car 0.93", 2)], 1))
        colour = list(label_colour(2))
        assert shown[120, 60].tolist() == shown[120, 240].tolist() == shown[180, 150].tolist() == colour
        label = (shown[40:58, 61:120] == colour).all(axis=-1)  # above the box, at its left
        assert label.mean() > 0.5
        assert label[8:12].mean() < 0.9, "letters are written on it"
        assert shown[120, 150].tolist() == [128, 128, 128]

    def test_labels_of_boxes_in_the_same_position_do_not_overlap(self):
        boxes = [LabelledBox((0.2, 0.3, 0.8, 0.9), f"{number} a class", number) for number in range(5)]
        shown = pixels(paint_boxes(plain(size=(300, 200)), boxes, 1))
        for box in boxes:
            alone = pixels(paint_boxes(plain(size=(300, 200)), [box], 1))
            solid = [(image == label_colour(box.category)).all(axis=-1) for image in (shown, alone)]
            fill = [np.convolve(one.ravel(), np.ones(4), "same").reshape(one.shape) == 4 for one in solid]
            inside = fill[1][40:59].sum()  # the label, drawn alone above its box
            assert fill[0].sum() > 0.6 * inside > 100, f"the label of box {box.category} is covered"

    def test_a_label_stays_in_the_picture(self):
        for corners in [
            (0.0, 0.0, 1.0, 1.0),
            (0.9, 0.0, 1.0, 0.1),
            (0.0, 0.95, 0.1, 1.0),
            (-0.2, -0.2, 0.1, 0.1),
            (0.99, 0.99, 1.0, 1.0),
        ]:
            picture = plain(size=(200, 100))
            shown = pixels(paint_boxes(picture, [LabelledBox(corners, "0 potted plant 0.93", 5)], 1))
            solid = (shown == label_colour(5)).all(axis=-1)
            assert solid.sum() > 700, f"the label of a box at {corners} runs out of the picture"

    def test_a_label_that_is_too_long_is_cut(self):
        shown = paint_boxes(plain(size=(100, 80)), [LabelledBox((0.1, 0.5, 0.9, 0.9), "0 " + "long " * 40, 1)], 1)
        assert shown.size == (100, 80)

    def test_a_strong_box_is_drawn_on_top(self):
        corners = (0.2, 0.3, 0.8, 0.9)
        boxes = [LabelledBox(corners, "0 a", 0), LabelledBox(corners, "1 b", 1, is_strong=True)]
        shown = pixels(paint_boxes(plain(size=(300, 200)), boxes, 1))
        assert shown[120, 60].tolist() == list(label_colour(1))
        assert near(shown[120, 58], LIGHT) or near(shown[120, 62], LIGHT)
        weak = changed(
            plain(size=(300, 200)), paint_boxes(plain(size=(300, 200)), [replace(boxes[1], is_strong=False)], 1)
        )
        strong = changed(plain(size=(300, 200)), paint_boxes(plain(size=(300, 200)), [boxes[1]], 1))
        assert strong[120].sum() >= weak[120].sum() + 4


def segmented(*questions, **fields):
    """Explain a picture whose right half is green and whose left half is blue, with a red square in it."""
    picture = np.zeros((16, 20, 3), np.uint8)
    picture[:, :10, 2] = picture[:, 10:, 1] = 255
    picture[4:8, 2:6] = (255, 0, 0)
    model = glowmap.load(ColourSegmenter().eval(), mean=0.0, classes=["blue", "green", "red"])
    return glowmap.explain(model, picture, target=list(questions), layer="layer", **fields)


class TestAnnotations:
    def test_a_point_is_stored_in_shares_of_the_visible_part(self):
        ((mark,),) = segmented(Point(3, 5))[0].annotations
        assert mark.point == (3.5 / 20, 5.5 / 16)
        assert (mark.box, mark.region) == (None, None)

    def test_an_object_is_annotated_with_its_point(self):
        ((region, point),) = segmented(At(3, 5))[0].annotations
        wanted = torch.zeros(16, 20, dtype=torch.bool)
        wanted[4:8, 2:6] = True
        assert torch.equal(region.region, wanted)
        assert point.point == (3.5 / 20, 5.5 / 16)
        ((largest,),) = segmented(Pixels("red", Object(0)))[0].annotations
        assert torch.equal(largest.region, wanted)

    def test_all_pixels_of_a_class_have_no_annotation(self):
        assert [one.annotations for one in segmented("red", Pixels("green"), None)] == [((),)] * 3

    def test_combined_targets_have_the_annotations_of_their_parts(self):
        mask = np.zeros((16, 20))
        mask[:3] = 1
        against, rather, custom = segmented(
            Not(Point(3, 5)), Pixels(Contrast("red", "blue"), mask), lambda out: out[:, 0].sum((1, 2))
        )
        assert against.annotations[0][0].point == (3.5 / 20, 5.5 / 16)
        assert torch.equal(rather.annotations[0][0].region, torch.from_numpy(mask > 0))
        assert custom.annotations == ((),)

    def test_each_image_has_its_own_annotations(self):
        batch = images(2).abs()
        explanation = glowmap.explain(
            ColourSegmenter(), batch, target=PerImage([Point(0, 0), Point(19, 15)]), layer="layer"
        )
        assert [[annotation.point for annotation in several] for several in explanation.annotations] == [
            [(0.5 / 20, 0.5 / 16)],
            [(19.5 / 20, 15.5 / 16)],
        ]
        assert [annotation.point for annotation in explanation[1].annotations[0]] == [(19.5 / 20, 15.5 / 16)]

    def test_a_custom_target_may_have_annotations(self):
        @dataclass(frozen=True)
        class Corner(Target):
            def score(self, answer):
                return answer.logits[:, 0]

            def describe(self, answer, image):
                return "corner"

            def annotations(self, answer, image):
                return [Annotation(box=(0.0, 0.0, 0.5, 0.25))]

        explanation = glowmap.explain(Classifier().eval(), images(), target=Corner(), layer="features.3")
        assert [one.box for several in explanation.annotations for one in several] == [(0.0, 0.0, 0.5, 0.25)] * 2

    def test_an_annotation_of_two_parts_is_kept_once(self):
        @dataclass(frozen=True)
        class Both(Target):
            parts: tuple

            def score(self, answer):
                return sum(part.score(answer) for part in self.parts)

            def describe(self, answer, image):
                return "both"

            def children(self):
                return self.parts

            def with_children(self, children):
                return Both(tuple(children))

        both = Both((Pixels("red", Point(3, 5)), Pixels("blue", Point(3, 5)), Pixels("blue", Point(4, 5))))
        assert [one.point for one in segmented(both)[0].annotations[0]] == [(3.5 / 20, 5.5 / 16), (4.5 / 20, 5.5 / 16)]

    @pytest.mark.parametrize("given", [{}, {"point": (0.5, 0.5), "box": (0.0, 0.0, 1.0, 1.0)}])
    def test_an_annotation_is_a_point_a_box_or_a_region(self, given):
        with pytest.raises(
            TargetError, match=f"a point, a box or a region, and this one has {len(given)}; give exactly one"
        ):
            Annotation(**given)

    def test_an_overlay_shows_annotations_on_request(self):
        explanation = segmented(At(3, 5))[0]
        bare = replace(explanation, annotations=())
        assert explanation.overlay().tobytes() == bare.overlay().tobytes()
        marked, wanted = (
            explanation.overlay(show_annotations=True),
            outlined(explanation.overlay(), [explanation.annotations[0][0].region.numpy()]),
        )
        assert changed(explanation.overlay(), marked)[4:8, 1].any()
        assert (changed(explanation.overlay(), marked) | ~changed(explanation.overlay(), wanted)).all()
        assert explanation.panel().tobytes() != bare.panel().tobytes()


class TinyDetector(torch.nn.Module):
    """A detector with fixed boxes, whose class logits are read at fixed cells of a convolution."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 1)

    def forward(self, pictures):
        return self.layer(pictures)


FOUND = [(0, 2, 0.93, (2.0, 4.0, 12.0, 16.0)), (1, 1, 0.61, (10.0, 0.0, 20.0, 8.0)), (2, 2, 0.4, (0.0, 0.0, 4.0, 4.0))]
PLACES = [(10, 7), (4, 15), (2, 2)]  # row and column of each candidate


def candidates(answer):
    boxes = torch.tensor([box for *_, box in FOUND])
    logits = [torch.stack([one[:, row, column] for row, column in PLACES]) for one in answer.raw]
    explanation = [[DetectedBox(category, score, corners, at) for at, category, score, corners in FOUND]] + [[]] * (
        answer.batch - 1
    )
    return Candidates([boxes] * answer.batch, logits, explanation)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    loaded = glowmap.load(TinyDetector().eval(), mean=0.5, classes=["sky", "car, auto", "bus", "person"])
    return loaded.with_readers(candidates=candidates)


@pytest.fixture(scope="module")
def detected(detector):
    picture = np.random.default_rng(0).integers(0, 256, (16, 20, 3)).astype(np.uint8)
    return glowmap.explain(detector, picture, target=[Detection(0), Detection(1)], layer="layer")


class TestDetections:
    def test_detections_are_the_prediction(self, detected):
        said = detected[0].prediction
        assert (said.labels, said.probabilities) == (None, None)
        assert said.names == ("sky", "car, auto", "bus", "person")
        assert said.boxes == (
            (
                DetectedBox(2, 0.93, (0.1, 0.25, 0.6, 1.0), name="bus"),
                DetectedBox(1, 0.61, (0.5, 0.0, 1.0, 0.5), name="car, auto"),
                DetectedBox(2, 0.4, (0.0, 0.0, 0.2, 0.25), name="bus"),
            ),
        )
        assert repr(said) == "<Prediction of 4 classes in boxes: 3 detected>"

    def test_the_box_of_the_target_is_annotated_and_drawn_stronger(self, detected, monkeypatch):
        assert [one.annotations[0][0].box for one in detected] == [(0.1, 0.25, 0.6, 1.0), (0.5, 0.0, 1.0, 0.5)]
        drawn = []
        monkeypatch.setattr(
            "glowmap.explanation.tiles.paint_boxes",
            lambda picture, boxes, scale: drawn.append(boxes) or plain(size=picture.size),
        )
        (tile,) = prediction_tiles(detected[1], 0, Style())
        assert [(one.label, one.is_strong) for one in drawn[0]] == [
            ("0 bus 0.93", False),
            ("1 car 0.61", True),
            ("2 bus 0.40", False),
        ]
        assert [one.category for one in drawn[0]] == [2, 1, 2]
        assert tile.caption == ("3 detections",)

    def test_at_most_twenty_boxes_are_drawn_beside_that_of_the_target(self, detected, monkeypatch):
        drawn = []
        monkeypatch.setattr(
            "glowmap.explanation.tiles.paint_boxes",
            lambda picture, boxes, scale: drawn.append(boxes) or plain(size=picture.size),
        )
        many = tuple(DetectedBox(2, 1 - n / 100, (n / 100, 0.1, n / 100 + 0.2, 0.4), name="bus") for n in range(50))
        said = Prediction(detected[0].prediction.names, boxes=(many,))
        one = replace(detected[0], prediction=said, annotations=((Annotation(box=many[37].corners),),))
        (tile,) = prediction_tiles(one, 0, Style())
        assert [box.label.split()[0] for box in drawn[0]] == [*map(str, range(20)), "37"]
        assert tile.caption == ("21 of 50 detections",)

    def test_the_caption_says_that_there_are_no_detections(self, detected):
        one = replace(detected[0], prediction=Prediction(("a", "b"), boxes=((),)), annotations=())
        (tile,) = prediction_tiles(one, 0, Style())
        assert tile.caption == ("no detections",)
        assert tile.image.tobytes() == one.pictures[0].visible_part().tobytes()

    def test_boxes_are_drawn_over_the_picture_and_annotations_over_picture_and_heat(self, detected):
        (tile,) = prediction_tiles(detected[0], 0, Style())
        large = pixels(tile.draw((400, 320), 1))
        assert large[200, 40].tolist() == list(label_colour(2))  # the left side of box 0
        assert large[60, 200].tolist() == list(label_colour(1))
        picture = picture_tile(detected[0], 0, "", Style())
        assert pixels(picture.draw((400, 320), 1))[200, 40].tolist() == list(LIGHT)
        assert pixels(picture.draw((400, 320), 1))[200, 41].max() < 140, DARK

    def test_they_are_saved_and_read_back(self, detected, tmp_path):
        read = Explanations.load(detected.save(tmp_path / "boxes.npz"))
        assert [one.prediction.boxes for one in read] == [one.prediction.boxes for one in detected]
        assert [one.annotations[0][0].box for one in read] == [one.annotations[0][0].box for one in detected]
        assert read.panel().tobytes() == detected.panel().tobytes()
        assert detected[0].prediction.same_as(read[0].prediction)

    def test_images_are_selected_with_their_boxes(self, detected):
        said = detected[0].prediction
        two = replace(said, boxes=(*said.boxes, ()))
        assert two.of(slice(1, 2)).boxes == ((),)
        assert two.of(slice(0, 1)).boxes == said.boxes
        assert repr(two) == "<Prediction of 4 classes in boxes: 3, 0 detected>"


def test_points_boxes_and_regions_are_saved_and_read_back(tmp_path):
    region = torch.rand(6, 7) > 0.5
    annotations = (
        (Annotation(point=(0.125, 0.3)), Annotation(region=region)),
        (),
        (Annotation(box=(0.1, 0.2, 0.3, 0.4)),),
    )
    explanation = Explanation(
        torch.rand(3, 2, 2),
        torch.zeros(3),
        "layer",
        "m",
        "M",
        ("a", "b", "c"),
        (8, 8),
        (uncropped(plain()),) * 3,
        annotations=annotations,
    )
    read = Explanation.load(explanation.save(tmp_path / "marks.npz"))
    assert [len(several) for several in read.annotations] == [2, 0, 1]
    assert read.annotations[0][0].point == (0.125, 0.3)
    assert torch.equal(read.annotations[0][1].region, region)
    assert read.annotations[2][0].box == (0.1, 0.2, 0.3, 0.4)
    assert explanation[1:].annotations == annotations[1:]
    assert read.panel().tobytes() == explanation.panel().tobytes()


class TestRanking:
    """A ranking of classes is drawn only beside targets that are classes."""

    def test_an_output_value_has_no_ranking_beside_it(self):
        number, category = glowmap.explain(
            Classifier().eval(), images(1), target=[glowmap.targets.OutputValue(1), 1], layer="features.3"
        )
        assert number.prediction is None
        assert category.prediction.probabilities.shape == (1, 4)

    def test_a_combined_target_ranks_where_one_of_its_parts_does(self):
        assert not Not(glowmap.targets.OutputValue(1)).is_class
        assert not Not(glowmap.targets.Unit(3)).is_class
        assert Not(1).is_class
        assert PerImage([glowmap.targets.OutputValue(1), 2]).is_class
        assert not Pixels(glowmap.targets.OutputValue(0), Point(1, 1)).is_class
