"""Questions about regions: an object under a point, by its size, one place, and what sets pixels off from around them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import glowmap
from glowmap.errors import TargetError
from glowmap.inputs import Picture
from glowmap.models.preprocessing import ResizedAndNormalised, Transform, crop_box
from glowmap.targets import (
    At,
    Contrast,
    Finer,
    Not,
    Object,
    OutputValue,
    PerImage,
    Pixels,
    Point,
    Predicted,
    Probability,
)
from tiny_models.convolutional import Classifier, ColourSegmenter, OneOutput, images

NAMES = ["blue", "green", "red"]


def values(shares):
    return [share.value for share in shares]


def explain(batch, target, model=None, layer="layer", **options):
    asked = glowmap.load(model or ColourSegmenter(), classes=NAMES)
    return glowmap.explain(asked, batch, target=target, layer=layer, **options)


def painted(*rows):
    """A picture of letters: r, g, b are 2, 3, 5 of that colour, R, G, B ten times as much, and a dot is 1 of blue."""
    picture = torch.zeros(1, 3, len(rows), len(rows[0]))
    values = {
        "r": (0, 2.0),
        "g": (1, 3.0),
        "b": (2, 5.0),
        ".": (2, 1.0),
        "R": (0, 20.0),
        "G": (1, 30.0),
        "B": (2, 50.0),
    }
    for row, letters in enumerate(rows):
        for column, letter in enumerate(letters):
            colour, value = values[letter]
            picture[0, colour, row, column] = value
    return picture


# two red objects apart (the right one touches the edge, one of its pixels by a corner alone), one green between them
STREET = painted(
    "........",
    ".rr.....",
    ".rr.g..R",
    "....gg.R",
    "......R.",
)


def test_the_object_under_a_point_is_the_connected_one_and_no_other():
    left = explain(STREET, Pixels("red", At(2, 1)), method="hires_cam")
    right = explain(STREET, Pixels("red", At(7, 3)), method="hires_cam")
    assert left.scores.tolist() == [4 * 2.0]
    assert right.scores.tolist() == [3 * 20.0]  # the pixel at the corner belongs to it
    assert left.target_names == ("red (object at 2, 1)",)
    inside = torch.zeros(5, 8)
    inside[1:3, 1:3] = 1
    assert torch.equal(left.raw[0], inside * 2.0)  # where the gradient is 1 and the activation 2, and nowhere else
    assert right.raw[0].nonzero().tolist() == [[2, 7], [3, 7], [4, 6]]


def test_without_a_class_it_is_the_one_predicted_there():
    for target in (At(4, 2), Pixels(None, At(4, 2)), Pixels(Predicted(), At(4.4, 1.6)), Pixels("green", At(5, 3))):
        found = explain(STREET, target)
        assert found.scores.tolist() == [9.0]
        assert found.target_names[0].startswith("green (object at ")
    found = explain(STREET, At(0, 0))  # all the rest is one region of blue
    assert found.target_names == ("blue (object at 0, 0)",)
    assert found.scores.tolist() == [40 - 10.0]
    rather = explain(STREET, Pixels(Contrast(Predicted(), "blue"), At(7, 2)))
    assert rather.target_names == ("red rather than blue (object at 7, 2)",)
    assert rather.scores.tolist() == [60.0]


def test_another_class_may_be_asked_about_in_an_object_and_the_caption_says_so():
    found = explain(STREET, Pixels("green", At(2, 2)))
    assert found.target_names == ("green (in the red at 2, 2)",)
    assert found.scores.tolist() == [0.0]
    unnamed = glowmap.explain(ColourSegmenter(), STREET, target=Pixels(1, At(2, 2)), layer="layer")
    assert unnamed.target_names == ("class 1 (in class 2 at 2, 2)",)


def test_one_place_alone():
    found = explain(STREET, Pixels("red", Point(7, 2)), method="hires_cam")
    assert found.scores.tolist() == [20.0]
    assert found.raw[0].nonzero().tolist() == [[2, 7]]
    assert found.target_names == ("red (point 7, 2)",)
    assert explain(STREET, Point(4, 2)).target_names == ("green (point 4, 2)",)
    assert explain(STREET, Pixels("blue", Point(4, 2))).scores.tolist() == [0.0]


@pytest.mark.parametrize(
    ("target", "score", "wording"),
    [
        (Pixels("red", Object()), 8.0, "red (largest object)"),
        (Pixels("red", Object(1)), 60.0, "red (object 1 by size)"),
        (Object(0), 30.0, "blue (largest object)"),  # of the class predicted at most pixels
        (Pixels(Contrast("red", "green"), Object(1)), 60.0, "red rather than green (object 1 by size)"),
        (Not(Pixels("red", Object(1))), -60.0, "not red (object 1 by size)"),
        (Not(At(2, 1)), -8.0, "not red (object at 2, 1)"),
    ],
)
def test_objects_by_their_size(target, score, wording):
    found = explain(STREET, target)
    assert found.scores.tolist() == [score]
    assert found.target_names == (wording,)


def test_objects_of_a_volume():
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, scan):
            return self.layer(torch.cat([1 - scan, scan], 1))

    scan = torch.zeros(1, 1, 4, 5, 6)
    scan[0, 0, 0, :2, :2] = 2.0  # four voxels, which a fifth in the next slice touches by a corner
    scan[0, 0, 1, 2, 2] = 3.0
    scan[0, 0, 3, 4, 3:] = 7.0
    found = glowmap.explain(Volume(), scan, target=[Pixels(1, Object(0)), Pixels(1, Object(1))], layer="layer")
    assert [one.scores.tolist() for one in found] == [[11.0], [21.0]]
    with pytest.raises(
        TargetError, match=r"no object 2 of 'class 1': there are 2, of 5, 3 pixels; give a number from 0"
    ):
        glowmap.explain(Volume(), scan, target=Pixels(1, Object(2)), layer="layer")
    with pytest.raises(TargetError, match=r"a point has x and y, and the output of Volume has 3 axes of places"):
        glowmap.explain(Volume(), scan, target=At(1, 1), layer="layer")


def test_one_output_class_has_objects_too():
    picture = torch.tensor([[5.0, -1.0, 2.0, 2.0], [5.0, -1.0, -1.0, 2.0]])[None, None]

    def score(target):
        return glowmap.explain(OneOutput(), picture, target=target, layer="layer").scores.tolist()

    assert score(At(0, 1)) == [10.0]
    assert score(At(3, 0)) == [6.0]
    assert score(Object(0)) == [6.0]
    assert score(Pixels(0, Point(1, 0))) == score(Point(1, 0)) == [-1.0]
    with pytest.raises(TargetError, match=r"nothing is predicted at 1, 0; give a point on a predicted pixel"):
        score(At(1, 0))


class Quarter(nn.Module):
    """Answers in a dict, at a quarter of the input's rows and columns, as SegFormer does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.AvgPool2d(4)

    def forward(self, pictures):
        return {"out": self.layer(pictures).flip(1)}


def test_an_output_at_a_quarter_of_the_size():
    picture = torch.zeros(1, 3, 16, 24)
    picture[:, 0, 4:8, 8:16], picture[:, 0, 12:, 20:] = 2.0, 3.0
    picture[:, 2] += 0.5
    for x, y in ((8, 4), (15, 7), (11.4, 5)):
        assert explain(picture, At(x, y), Quarter()).scores.tolist() == [4.0]
    assert explain(picture, At(23, 15), Quarter()).scores.tolist() == [3.0]
    assert explain(picture, Point(8, 4), Quarter()).scores.tolist() == [2.0]
    assert explain(picture, At(7, 4), Quarter()).target_names == ("blue (object at 7, 4)",)


class Middle(ResizedAndNormalised):
    """Sees the middle of a picture alone, and twice as large."""

    def __call__(self, picture):
        left, top = picture.width // 4, picture.height // 4
        box = (left, top, picture.width - left, picture.height - top)
        tensor, _ = super().__call__(picture.crop(box).resize(picture.size, Image.Resampling.NEAREST))
        return tensor, Picture(picture, tuple(map(float, box)))


def test_a_point_counts_in_the_pixels_of_the_picture_as_it_was_given():
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[6:8, 11:14] = pixels[12:15, 20:29] = (255, 0, 0)  # 6 and 27 pixels, seen twice as large
    model = glowmap.Model(ColourSegmenter(), "middle", Middle(), class_names=tuple(NAMES))

    def explained(target, given=pixels):
        return glowmap.explain(model, given, target=target, layer="layer")

    assert explained(At(12, 7)).scores.tolist() == [6 * 4.0]
    assert explained(At(20, 12)).scores.tolist() == [27 * 4.0]
    assert explained(At(28.4, 14)).scores.tolist() == [27 * 4.0]
    assert explained(At(12, 7)).target_names == ("red (object at 12, 7)",)
    assert explained(At(10, 5)).target_names == (
        "blue (object at 10, 5)",
    )  # the first pixel that is seen, and the last
    assert explained(Point(29, 14)).target_names == ("blue (point 29, 14)",)
    for x, y in ((9, 7), (30, 7), (12, 4), (12, 15)):
        seen = "the part that the model saw of the picture, of 40 x 20 pixels: from 10, 5 to 29, 14"
        with pytest.raises(
            TargetError, match=rf"the point {x}, {y} \(x to the right, y down\) lies outside {seen}; give"
        ):
            explained(At(x, y))
    turned = np.flip(pixels, 1).copy()
    two = explained(PerImage([At(12, 7), At(14, 13)]), [pixels, turned])
    assert two.scores.tolist() == [6 * 4.0, 27 * 4.0]
    assert explained(At(12, 13), [pixels, turned]).target_names == ("blue (object at 12, 13)", "red (object at 12, 13)")
    with pytest.raises(
        TargetError, match=r"lies outside the part that the model saw of .* in image 0; give a point inside"
    ):
        explained(At(2, 7), [pixels, turned])


@pytest.mark.parametrize("point", [(-1, 2), (8, 2), (3, 5), (float("nan"), 1), (1e9, 0)])
def test_a_point_outside_the_picture(point):
    with pytest.raises(TargetError, match=r"lies outside the picture, of 8 x 5 pixels; give a point inside"):
        explain(STREET, At(*point))


def test_each_image_has_its_own_object():
    batch = torch.cat([STREET, STREET.flip(3), painted(*["rrrrrrrr"] * 5)])
    found = explain(batch, Pixels("red", At(2, 2)), method="hires_cam")
    assert found.scores.tolist() == [8.0, 0.0, 80.0]
    assert found.target_names == ("red (object at 2, 2)", "red (in the blue at 2, 2)", "red (object at 2, 2)")
    for image in range(3):
        alone = explain(batch[image : image + 1], Pixels("red", At(2, 2)), method="hires_cam")
        assert torch.equal(found.raw[image : image + 1], alone.raw)
    own = explain(batch, At(2, 2))
    assert own.scores.tolist() == [8.0, 30.0, 80.0]
    assert own.target_names == ("red (object at 2, 2)", "blue (object at 2, 2)", "red (object at 2, 2)")
    largest = explain(batch, Object())
    assert largest.target_names == ("blue (largest object)", "blue (largest object)", "red (largest object)")


# what sets pixels off from around them


def test_the_border_is_the_mean_inside_minus_the_mean_just_outside():
    for width, ring in ((1, 16 - 4), (2, 5 * 5 - 4)):  # rows 0 to 3 (or 4), columns 0 to 3 (or 4)
        found = explain(STREET, Pixels("red", At(1, 1), border=width), method="hires_cam")
        assert found.scores.tolist() == [2.0 - 0.0]
        assert found.target_names == ("red (object at 1, 1), set off from its border",)
        green = explain(STREET, Pixels("green", At(1, 1), border=width)).scores
        seen = 3.0 * (width == 2) * 2  # both green pixels of column 4
        torch.testing.assert_close(green, torch.tensor([-seen / ring]))


def test_the_border_by_hand_with_its_gradient():
    """HiResCAM of mean(inside) - mean(ring): A/n inside and -A/m in the ring, in the class's own channel."""
    batch = images(1, 5, 8)
    mask = torch.zeros(5, 8)
    mask[0, 0] = mask[0, 1] = 1
    found = explain(batch, Pixels("red", mask, border=1), method="hires_cam")
    wanted = torch.zeros(5, 8)
    red = batch[0, 0]
    ring = [(0, 2), (1, 0), (1, 1), (1, 2)]
    for row, column in [(0, 0), (0, 1)]:
        wanted[row, column] = red[row, column] / 2
    for row, column in ring:
        wanted[row, column] = -red[row, column] / len(ring)
    torch.testing.assert_close(found.raw[0], wanted)
    torch.testing.assert_close(found.scores, wanted.sum()[None])
    assert found.target_names == ("red (mask), set off from its border",)


def test_predicted_pixels_have_a_border_too():
    found = explain(STREET, Pixels("green", border=1))
    assert found.scores.tolist() == [3.0]
    assert found.target_names == ("green, set off from its border",)
    both = explain(STREET, Pixels(Contrast("green", "red"), border=1), method="hires_cam")
    inside = torch.zeros(5, 8, dtype=torch.bool)
    for row, column in ((2, 4), (3, 4), (3, 5)):
        inside[row, column] = True
    grown = torch.zeros(5, 8, dtype=torch.bool)
    for row, column in inside.nonzero().tolist():
        grown[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True
    around = grown & ~inside
    red = STREET[0, 0]
    torch.testing.assert_close(both.scores, 3.0 + red[around].mean()[None])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            Pixels("red", torch.ones(5, 8), border=1),
            r"nothing lies around the pixels of 'red \(mask\), set off .*leave out border",
        ),
        (Pixels("red", border=-1), "border is a width in pixels of the output, not -1; give a whole number from 0"),
        (Pixels("red", border=True), "not True"),
        (
            Pixels("red", Object(2)),
            "no object 2 of 'red': there are 2, of 4, 3 pixels; give a number from 0, the largest, to 1",
        ),
        (Pixels("green", Object(1)), "no object 1 of 'green': there is one, of 3 pixels; give 0"),
        (Pixels("green", Object(-1)), "no object -1 of 'green'"),
        (Pixels("red", torch.zeros(5, 8)), "the mask is empty; mark at least one pixel"),
        (Pixels(None, torch.zeros(5, 8)), "the mask is empty; mark at least one pixel"),
        (Pixels(OutputValue(2), At(1, 1)), "a number that is no class has no objects; give a mask, or targets.Point"),
        (Pixels(Not("red"), At(1, 1)), "Not is not about a class"),
        (Pixels(Contrast("red", Predicted()), At(1, 1)), "'red' is contrasted with itself"),
        (Pixels("rad", At(1, 1)), "no class 'rad' in ColourSegmenter; near names: red"),
    ],
)
def test_what_cannot_be_asked(target, message):
    with pytest.raises(TargetError, match=message):
        explain(STREET, target)


def test_no_object_of_a_class_that_is_not_there_names_what_is():
    with pytest.raises(
        TargetError, match=r"no pixel is predicted as 'red', so there is no object of it; .* predicted \(blue 100.0%\)"
    ):
        explain(painted("..", ".."), Pixels("red", Object()))
    pair = torch.cat([painted("r.", ".."), painted("..", "..")])
    with pytest.raises(TargetError, match=r"no pixel is predicted as 'red' in image 1, so there is no object"):
        explain(pair, Pixels("red", Object()))


def test_a_classifier_has_no_regions():
    for target in (At(1, 1), Object(), Pixels(0, Point(1, 1))):
        with pytest.raises(
            TargetError,
            match="class scores at pixels, and Classifier returns one score per class and image",
        ):
            glowmap.explain(Classifier().eval(), images(2), target=target, layer="features")


def test_without_a_class_a_mask_asks_about_the_one_predicted_at_most_of_its_pixels():
    mask = torch.zeros(5, 8)
    mask[1:4, 4:6] = 1  # three green, three blue
    mask[4, 4:6] = 1  # and two more of blue
    assert explain(STREET, Pixels(None, mask)).target_names == ("blue (mask)",)
    named = glowmap.load(ColourSegmenter(), classes=["background", "green", "red"])
    found = glowmap.explain(named, STREET, target=Pixels(None, mask), layer="layer")
    assert found.target_names == ("green (mask)",)
    assert found.scores.tolist() == [9.0]
    elsewhere = torch.zeros(5, 8)
    elsewhere[0] = 1
    assert glowmap.explain(named, STREET, target=Pixels(None, elsewhere), layer="layer").target_names == (
        "background (mask)",
    )


@pytest.mark.parametrize(
    "target",
    [
        Pixels("red", At(2, 1)),
        At(4, 2),
        Pixels("red", Object(1)),
        Pixels(Finer(None, rivals=1), At(7, 2)),
        Pixels(Probability("red"), Point(7, 2)),
        Pixels("red", At(2, 1), border=1),
        Not(At(2, 1)),
    ],
)
def test_asked_again_the_region_stays_that_of_the_unchanged_image(target):
    """Ablation-CAM of the three colours: without red there is no red object any more, and yet its pixels are asked about."""
    found = explain(STREET, target, method="ablation_cam")
    plain = explain(STREET, target, method="hires_cam")
    assert found.scores.tolist() == plain.scores.tolist()

    def score(picture):
        from glowmap.targets import as_target

        model = glowmap.load(ColourSegmenter(), classes=NAMES)
        batch = model.read(STREET)
        question = as_target(target).pin(model.read_output(ColourSegmenter()(STREET), batch), 0)
        return question.score(model.read_output(ColourSegmenter()(picture), batch))[0]

    wanted = 0
    for colour in range(3):
        without = STREET.clone()
        without[:, colour] = 0
        wanted = wanted + (score(STREET) - score(without)) * STREET[0, colour]
    torch.testing.assert_close(found.raw[0], wanted.detach())
    assert wanted.any()


def test_smoothing_keeps_the_region():
    batch = torch.cat([STREET, STREET.flip(3)])
    found = explain(batch, PerImage([At(2, 1), At(0, 2)]), method="hires_cam", smooth="flips")
    plain = explain(batch, PerImage([At(2, 1), At(0, 2)]), method="hires_cam")
    torch.testing.assert_close(found.raw, plain.raw)
    assert found.target_names == ("red (object at 2, 1)", "red (object at 0, 2)")


@pytest.mark.parametrize("target", [At(2, 1), Not(None), Finer(None)])
def test_a_method_that_never_reads_the_score_says_so_of_these_questions_too(target):
    found = explain(STREET, target, method="eigen_cam")
    assert any("never the score" in caution for caution in found.cautions)
    assert not any("never the score" in caution for caution in explain(STREET, None, method="eigen_cam").cautions)


# where the picture lies in what the model saw: presets cut and pad


def as_torchvision(rows, columns, *, padded):
    from torchvision import transforms

    resize = [] if padded else [transforms.Resize(80)]
    return transforms.Compose([*resize, transforms.CenterCrop((rows, columns)), transforms.ToTensor()])


def as_timm(rows, columns, *, padded):
    timm = pytest.importorskip("timm")
    mode = {"crop_mode": "border", "crop_pct": 1.0} if padded else {"crop_mode": "center", "crop_pct": 0.8}
    return timm.data.create_transform((3, rows, columns), is_training=False, mean=(0, 0, 0), std=(1, 1, 1), **mode)


def as_open_clip(rows, columns, *, padded):
    transform = pytest.importorskip("open_clip").transform
    settings = transform.PreprocessCfg(
        size=(rows, columns), mean=(0, 0, 0), std=(1, 1, 1), resize_mode="longest" if padded else "shortest"
    )
    return transform.image_transform_v2(settings, is_train=False)


def prepared(transform):
    """The model that knows colours, behind a library's own transform."""
    preset = Transform(transform, partial(crop_box, transform.transforms))
    return glowmap.Model(ColourSegmenter(), "prepared", preset, class_names=tuple(NAMES))


def square(rows, columns, place):
    """A blue picture with a red part, and the mask of that part."""
    mask = np.zeros((rows, columns), bool)
    mask[place] = True
    return np.where(mask[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8), mask


# (the transform, the input's rows and columns, where the picture of 60 x 36 begins in it, how much larger it is there)
PADS = [
    (as_torchvision, (80, 90), (22, 15), 1),  # on all sides
    (as_torchvision, (24, 90), (-6, 15), 1),  # at the sides, and cut above and below
    (as_timm, (120, 120), (24, 0), 2),  # above and below
    (as_open_clip, (120, 120), (24, 0), 2),
]


@pytest.mark.parametrize(("make", "size", "begins", "scale"), PADS)
def test_points_and_masks_are_of_the_picture_as_it_was_given_where_it_is_padded(make, size, begins, scale):
    picture, mask = square(36, 60, np.s_[8:20, 12:30])
    model = prepared(make(*size, padded=True))
    top, left = begins
    wanted = torch.zeros(size, dtype=torch.bool)
    wanted[top + 8 * scale : top + 20 * scale, left + 12 * scale : left + 30 * scale] = True

    def explained(target):
        return glowmap.explain(model, picture, target=target, layer="layer", method="hires_cam")

    for x, y in ((12, 8), (29, 8), (12, 19), (29, 19), (20.4, 11.6)):
        found = explained(At(x, y))
        assert found.target_names == (f"red (object at {x:g}, {y:g})",)
        region, point = found.annotations[0]
        assert torch.equal(region.region, wanted)
        across, down = (left + (x + 0.5) * scale) / size[1], (top + (y + 0.5) * scale) / size[0]
        assert point.point == pytest.approx((across, down))
    for x, y in ((11, 8), (30, 8), (12, 7), (29, 20), (0, 15), (59, 15)):
        assert explained(Point(x, y)).target_names == (f"blue (point {x:g}, {y:g})",)

    red = model.read(picture).images[0, 0]
    half = mask & (np.arange(60) < 21)
    inside = wanted & (torch.arange(size[1]) < left + 21 * scale)
    found = explained(Pixels("red", half))
    assert torch.equal(found.annotations[0][0].region, inside)
    torch.testing.assert_close(found.scores, red[inside].sum()[None])
    whole = explained("red")
    assert values(whole.share(mask)) == pytest.approx([1.0])
    assert values(whole.share(~mask)) == pytest.approx([0.0], abs=1e-6)
    assert values(whole.share(half)) == pytest.approx([float(red[inside].sum() / red[wanted].sum())])


def test_a_point_in_the_padding_is_outside_and_the_size_that_was_given_is_told():
    picture, _ = square(36, 60, np.s_[8:20, 12:30])
    model = prepared(as_torchvision(80, 90, padded=True))
    for x, y in ((-1, 10), (60, 10), (10, -1), (10, 36), (-15, -22)):
        for target in (At(x, y), Point(x, y)):
            with pytest.raises(TargetError, match="lies outside the picture, of 60 x 36 pixels; give a point inside"):
                glowmap.explain(model, picture, target=target, layer="layer")
    both = prepared(as_torchvision(24, 90, padded=True))
    seen = "the part that the model saw of the picture, of 60 x 36 pixels: from 0, 6 to 59, 29; give"
    for point in ((10, 5), (10, 30), (-1, 15)):
        with pytest.raises(TargetError, match=f"lies outside {seen}"):
            glowmap.explain(both, picture, target=At(*point), layer="layer")
    with pytest.raises(TargetError, match=r"the mask has the shape \(80, 60\)"):
        glowmap.explain(model, picture, target=Pixels("red", np.ones((80, 60))), layer="layer")
    padded = glowmap.explain(model, picture, target=Pixels("blue", np.ones((80, 90))), layer="layer")  # the input's
    assert padded.scores.tolist() == [36.0 * 60 - 12 * 18]


@pytest.mark.parametrize("make", [as_torchvision, as_timm])
def test_a_mask_as_large_as_the_picture_is_of_the_picture_though_the_input_is_as_large(make):
    """A picture of 64 x 64, of which a preset takes the middle 51.2 x 51.2 and makes 64 x 64 of it."""
    picture, mask = square(64, 64, np.s_[:, :16])
    model = prepared(make(64, 64, padded=False))
    found = glowmap.explain(model, picture, target=Pixels("red", mask), layer="layer", method="hires_cam")
    left = torch.zeros(64, 64, dtype=torch.bool)
    left[:, :12] = True  # 1.25 x 16 - 8
    assert torch.equal(found.annotations[0][0].region, left)
    assert torch.equal(found.prediction.labels[0] == 2, left)
    torch.testing.assert_close(found.scores, model.read(picture).images[0, 0][left].sum()[None])
    assert values(found.share(mask)) == pytest.approx([1.0], abs=0.02)
    _, cut_off = square(64, 64, np.s_[:, :6])
    with pytest.raises(TargetError, match="the mask is empty; mark at least one pixel, inside the part of the picture"):
        glowmap.explain(model, picture, target=Pixels("red", cut_off), layer="layer")
    assert values(found.share(cut_off)) == [0.0]


def test_a_mask_as_large_as_the_picture_is_of_the_picture_though_the_output_is_as_large():
    """A picture of 16 x 16, whose middle becomes 64 x 64, and an answer of 16 x 16."""
    picture, mask = square(16, 16, np.s_[:, :4])
    transform = as_timm(64, 64, padded=False)  # columns 1.6 to 14.4
    model = replace(prepared(transform), module=Quarter())
    found = glowmap.explain(model, picture, target=Pixels("red", mask), layer="layer")
    assert found.annotations[0][0].region[0].tolist() == [True] * 3 + [False] * 13  # 1.25 x 4 - 2
    every = glowmap.explain(model, picture, target=Pixels("red", np.ones((64, 64))), layer="layer")
    assert every.annotations[0][0].region.all()


def test_one_mask_for_several_pictures_is_read_in_one_way():
    """As of the pictures where all have its size; a mask for each is read for each."""
    small, mask = square(64, 64, np.s_[:, :16])
    large, _ = square(128, 128, np.s_[:, :32])
    model = prepared(as_torchvision(64, 64, padded=False))

    def columns(pictures, where):
        found = glowmap.explain(model, pictures, target=Pixels("red", where), layer="layer", method="hires_cam")
        return [int(image[0].region[0].sum()) for image in found.annotations], found

    assert columns([small, small], mask)[0] == [12, 12]
    assert columns([small, large], mask)[0] == [16, 16]
    numbers, found = columns([small, large], [mask, np.kron(mask, np.ones((2, 2)))])
    assert numbers == [12, 12]
    of_input = np.zeros((64, 64), bool)
    of_input[:, :6] = True
    assert values(found.share(of_input)) == pytest.approx([0.5, 0.5], abs=0.05)
    assert values(found[:1].share(of_input)) == [0.0]
