import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import glowmap
from glowmap.errors import TargetError
from glowmap.inputs import Picture
from glowmap.models.preprocessing import ResizedAndNormalised
from glowmap.targets import PerImage, Pixels, Target
from tiny_models.convolutional import Classifier, ColourSegmenter, OneOutput, Segmenter, images


def explain(model, batch, target, layer=None, **loading):
    asked = glowmap.load(model, **loading) if loading else model
    return glowmap.explain(
        asked, batch, target=target, layer=layer or ("layer" if hasattr(model, "layer") else "features")
    )


@pytest.fixture
def classifier():
    return Classifier().eval()


@pytest.fixture
def three_colours():
    """Left half red, right half green but for one blue row at the bottom: 4 x 6."""
    picture = torch.zeros(1, 3, 4, 6)
    picture[:, 0, :, :3], picture[:, 1, :, 3:] = 2.0, 3.0
    picture[:, :, 3, :] = torch.tensor([0.0, 0.0, 5.0])[:, None]
    return picture


def test_a_class_by_index_and_by_name(classifier):
    names = ["cat", "dog", "Car", "bus"]
    logits = classifier(images())
    for asked in (2, np.int64(2), torch.tensor(2), "Car", "car"):
        found = explain(classifier, images(), asked, classes=names)
        torch.testing.assert_close(found.scores, logits[:, 2].detach())
        assert found.target_names == ("Car", "Car")


def test_digits_are_an_index_only_where_given_as_a_number(classifier):
    found = explain(classifier, images(), "1", classes=["0", "2", "3", "1"])
    torch.testing.assert_close(found.scores, classifier(images())[:, 3].detach())


def test_none_is_each_images_own_answer(classifier):
    found = explain(classifier, images(5), None)
    logits = classifier(images(5)).detach()
    assert torch.equal(found.scores, logits.amax(1))
    assert found.target_names == tuple(f"class {i}" for i in logits.argmax(1))


@pytest.mark.parametrize("kind", [torch.tensor, np.array, PerImage])
def test_a_class_for_each_image(classifier, kind):
    found = explain(classifier, images(3), kind([2, 0, 3]))
    logits = classifier(images(3)).detach()
    torch.testing.assert_close(found.scores, logits[[0, 1, 2], [2, 0, 3]])
    single = explain(classifier, images(3)[1:2], 0)
    torch.testing.assert_close(found.raw[1:2], single.raw)


def test_each_mixes_kinds_of_questions():
    model = Segmenter().eval()
    mask = torch.zeros(16, 20)
    mask[:8] = 1
    whole = torch.ones(16, 20)
    found = glowmap.explain(
        model,
        images(2),
        target=PerImage([Pixels(1, mask), lambda out: out["out"][:, 2].sum((1, 2))]),
        layer="encoder.2",
    )
    out = model(images(2))["out"].detach()
    torch.testing.assert_close(found.scores, torch.stack([(out[0, 1] * mask).sum(), (out[1, 2] * whole).sum()]))


def test_a_list_asks_several_questions(classifier):
    found = explain(classifier, images(), [1, 3])
    assert [one.target_names[0] for one in found] == ["class 1", "class 3"]
    torch.testing.assert_close(found[1].scores, classifier(images())[:, 3].detach())


def test_a_callable_gets_the_raw_output(classifier):
    def second_rather_than_first(output):
        return output[:, 1] - output[:, 0]

    found = explain(classifier, images(), second_rather_than_first)
    logits = classifier(images()).detach()
    torch.testing.assert_close(found.scores, logits[:, 1] - logits[:, 0])
    assert found.target_names[0] == "second_rather_than_first"


def test_none_is_the_class_that_a_dense_model_predicts_at_most_pixels(three_colours):
    picture = three_colours.clone()
    picture[:, :, 0, 0] = torch.tensor([0.0, 4.0, 0.0])  # one pixel of red becomes green: 10 green, 8 red, 6 blue
    batch = torch.cat(
        [picture, picture.flip(1), torch.ones_like(picture) * torch.tensor([0.0, 0.0, 7.0]).reshape(3, 1, 1)]
    )
    found = explain(ColourSegmenter(), batch, None)
    assert found.target_names == ("class 1", "class 1", "class 0")
    # 9 pixels of 3 and one of 4; flipped, colours 0 and 2 change places and green stays; 24 pixels of 7
    torch.testing.assert_close(found.scores, torch.tensor([31.0, 31.0, 168.0]))
    whole = explain(ColourSegmenter(), batch, torch.tensor([1, 1, 0]))
    assert torch.equal(found.raw, whole.raw)


def test_a_background_is_no_answer_unless_there_is_nothing_else(three_colours):
    picture = torch.zeros(2, 3, 4, 6)
    picture[:, 2], picture[0, 0, 0, :2] = 1.0, 9.0  # blue, but for two red pixels in the first picture
    named = {"classes": ["Background", "green", "red"], "mean": 0.0, "std": 1.0}
    found = explain(ColourSegmenter(), picture, None, **named)
    assert found.target_names == ("red", "Background")
    torch.testing.assert_close(found.scores, torch.tensor([18.0, 24.0]))


def test_a_dense_models_class_is_its_predicted_pixels(three_colours):
    found = explain(ColourSegmenter(), three_colours, 2)  # red: 3 rows x 3 columns of 2.0
    assert found.scores.tolist() == [18.0]
    assert torch.equal(
        explain(ColourSegmenter(), three_colours, 0).scores, torch.tensor([30.0])
    )  # blue: 6 cells of 5.0


def test_a_single_class_is_predicted_where_its_logit_is_positive():
    picture = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])[None, None]
    found = explain(OneOutput(), picture, 0)
    assert found.scores.tolist() == [5.0]
    assert found.prediction.labels.tolist() == [[[0, 1], [1, 0]]]


@pytest.mark.parametrize(
    "convert", [torch.tensor, np.array, lambda m: torch.tensor(m) > 0, lambda m: np.array(m, float)]
)
def test_pixels_under_a_mask(three_colours, convert):
    mask = convert([[1, 1, 0, 0, 0, 0]] + [[0] * 6] * 3)
    assert explain(ColourSegmenter(), three_colours, Pixels(2, mask)).scores.tolist() == [4.0]


def test_a_mask_for_each_image(three_colours):
    masks = torch.zeros(2, 4, 6)
    masks[0, 0, 0] = masks[1, :3, :3] = 1
    found = explain(ColourSegmenter(), three_colours.repeat(2, 1, 1, 1), Pixels(2, masks))
    assert found.scores.tolist() == [2.0, 18.0]


def test_a_mask_of_the_inputs_size_for_an_output_of_another():
    class Quarter(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.AvgPool2d(2)

        def forward(self, picture):
            return self.layer(picture)

    picture = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(1, 2, 1, 1)
    mask = torch.zeros(8, 8)
    mask[:2, 4:6] = 1  # exactly one cell of the output: mean of 4, 5, 12, 13
    assert explain(Quarter(), picture, Pixels(1, mask)).scores.tolist() == [8.5]


@pytest.mark.parametrize(("size", "kept"), [(3, [1, 4, 7]), (4, [1, 3, 5, 7])])
def test_a_mask_is_reduced_to_the_cells_centres(size, kept):
    """Nearest neighbour by centres, (i + 1/2) 9 / size: anything else moves the mask to one side."""

    class Reduced(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, picture):
            return nn.functional.interpolate(self.layer(picture), (size, size))

    for row in range(9):
        mask = torch.zeros(9, 9)
        mask[row] = 1
        if row in kept:
            assert explain(Reduced(), torch.ones(1, 2, 9, 9), Pixels(1, mask)).scores.tolist() == [size]
        else:
            with pytest.raises(TargetError, match="the mask is empty"):
                explain(Reduced(), torch.ones(1, 2, 9, 9), Pixels(1, mask))


def test_half_precision_sums_do_not_overflow():
    picture = torch.full((1, 3, 300, 300), 2.0).half()
    assert explain(ColourSegmenter().half(), picture, Pixels(2, torch.ones(300, 300))).scores.tolist() == [180_000.0]


def test_a_mask_of_a_picture_of_which_the_model_sees_a_part():
    """Preprocessing that cuts the middle out: so is the mask cut."""

    class Middle(ResizedAndNormalised):
        def __call__(self, picture):
            tensor, _ = super().__call__(picture.crop((10, 5, 20, 15)))
            return tensor, Picture(picture, (10.0, 5.0, 20.0, 15.0))

    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., 0] = 255
    mask = np.zeros((20, 30))
    mask[:7, :12] = 1  # of which the model sees 2 rows and 2 columns
    model = glowmap.Model(ColourSegmenter(), "middle", Middle())
    found = glowmap.explain(model, pixels, target=Pixels(2, mask), layer="layer")
    assert found.scores.tolist() == [4.0]
    assert found.overlay().size == (10, 10)


def test_a_mask_of_the_pictures_own_size(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[10:, 15:] = (255, 0, 0)
    model = glowmap.load(ColourSegmenter(), size=(40, 60))
    mask = Image.new("1", (30, 20))
    mask.paste(1, (20, 12, 25, 16))  # 5 x 4 pixels well inside the red: 80 at twice the size
    found = glowmap.explain(model, pixels, target=Pixels(2, mask), layer="layer")
    assert found.scores.tolist() == [80.0]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("doog", r"no class 'doog' in Classifier; near names: dog"),
        (4, r"no class 4: Classifier has 4, from 0 to 3"),
        (-1, r"no class -1"),
        (True, "not True"),
        (1.5, "not float"),
        ([], "empty list of targets"),
        (torch.tensor([0, 1, 2]), "3 targets for 2 images"),
        (torch.tensor([0.5, 1.0]), "one integer axis"),
        (torch.zeros(2, 2, dtype=torch.long), "one integer axis"),
        (Pixels("dog", torch.ones(3, 3)), "one score per class and image"),
        (lambda out: out, r"returned the shape \(2, 4\) for 2 images"),
        (lambda out: out.sum(), r"returned the shape \(\)"),
        (lambda out: 3.0, "returned float"),
        (lambda out: out.argmax(1), "returned a tensor of torch.int64"),
        (lambda out: out[:, 0] / 0 * 0, "not finite in images 0, 1"),
        (lambda out: out["logits"], "raised IndexError"),
        (lambda out: out[:, 0].detach(), "carries no gradient"),
    ],
)
def test_what_cannot_be_asked_of_a_classifier(classifier, target, message):
    with pytest.raises(TargetError, match=message):
        explain(classifier, images(), target, classes=["cat", "dog", "car", "bus"])


def test_names_must_be_known_and_unambiguous(classifier):
    with pytest.raises(TargetError, match=r"class names of Classifier are unknown; give the index \(0 to 3\)"):
        explain(classifier, images(), "car")
    with pytest.raises(TargetError, match=r"'crane' stands for the classes \[1, 3\]"):
        explain(classifier, images(), "crane", classes=["a", "crane", "b", "crane"])
    with pytest.raises(TargetError, match="3 class names for the 4 classes"):
        explain(classifier, images(), "a", classes=["a", "b", "c"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("white", "no class 'white'"),
        (Pixels("red", torch.zeros(4, 6)), "the mask is empty; mark at least one pixel"),
        (
            Pixels("red", torch.ones(4, 7)),
            r"the mask has the shape \(4, 7\), but the output of ColourSegmenter is 1 x 4 x 6",
        ),
        (
            Pixels("red", torch.ones(2, 4, 6)),
            r"there are 2 masks of shape \(4, 6\), but the output of ColourSegmenter is 1 x 4 x 6",
        ),
        (Pixels("red", np.array([["in"]])), "a mask is an array, a tensor or a picture, not"),
    ],
)
def test_what_cannot_be_asked_of_a_dense_model(three_colours, target, message):
    with pytest.raises(TargetError, match=message):
        explain(ColourSegmenter(), three_colours, target, classes=["blue", "green", "red"])


def test_a_class_that_is_predicted_nowhere_names_what_is_there(three_colours):
    without_red = three_colours[:, :, :3, 3:]
    with pytest.raises(
        TargetError, match=r"no pixel is predicted as 'red'; give a class that is predicted \(green 100.0%\)"
    ):
        explain(ColourSegmenter(), without_red, "red", classes=["blue", "green", "red"])
    pair = torch.cat([three_colours[:, :, :3, :3], without_red])
    with pytest.raises(TargetError, match="predicted as 'class 2' in image 1;"):
        explain(ColourSegmenter(), pair, 2)


def test_an_output_that_nobody_can_read():
    class Boxes(Classifier):
        def forward(self, images):
            return {"boxes": super().forward(images), "scores": None}

    with pytest.raises(
        TargetError, match=r"no class scores .* a dict with the keys boxes, scores; pass target=a callable"
    ):
        explain(Boxes().eval(), images(), 1)
    found = explain(Boxes().eval(), images(), lambda out: out["boxes"][:, 1])
    assert found.prediction is None
    assert found.raw.any()


def test_a_tie_is_explained_as_the_class_that_is_named():
    model = Classifier().eval()
    model.head.weight.data[:] = model.head.weight.data[:1] * torch.tensor([0.5, 1.0, 1.0, 0.5])[:, None]
    model.head.bias.data[:] = torch.tensor([0.0, 5.0, 5.0, 0.0])
    model.head.weight.data[2] = model.head.weight.data[1].flip(0)
    model.head.bias.data[2] += (model(images(1))[0, 1] - model(images(1))[0, 2]).item()
    with torch.no_grad():
        logits = model(images(1))
    found = explain(model, images(1), None)
    index = int(logits[0].argmax())
    assert found.target_names == (f"class {index}",)
    assert torch.equal(found.raw, explain(model, images(1), index).raw)


def test_a_target_that_writes_into_the_output_is_refused(classifier):
    def doubling(output):
        output *= 2
        return output[:, 0]

    with pytest.raises(TargetError, match="'doubling' writes into the model's output in place"):
        explain(classifier, images(), [doubling, 0])


def test_a_mask_for_each_picture_of_any_size():
    model = glowmap.load(ColourSegmenter(), size=(8, 8))
    pictures = [np.full((16, 16, 3), (255, 0, 0), np.uint8), np.full((4, 4, 3), (255, 0, 0), np.uint8)]
    masks = [np.zeros((16, 16)), np.zeros((4, 4))]
    masks[0][:4, :4] = 1  # 2 x 2 cells of the output
    masks[1][0, 0] = 1  # likewise
    found = glowmap.explain(model, pictures, target=Pixels(2, masks), layer="layer")
    assert found.scores.tolist() == [4.0, 4.0]


def test_names_for_each_image_as_an_array(classifier):
    found = explain(classifier, images(), np.array(["dog", "bus"]), classes=["cat", "dog", "car", "bus"])
    assert found.target_names == ("dog", "bus")


def test_labels_cost_their_number_and_not_its_square(monkeypatch):
    """512 labels took seconds when each of them looked at all the others."""
    model, reads = Classifier().eval(), []
    as_target = glowmap.targets.as_target
    monkeypatch.setattr("glowmap.targets.as_target", lambda question: reads.append(1) or as_target(question))
    explain(model, images(64, 8, 8), torch.zeros(64, dtype=torch.long))
    assert len(reads) <= 64 + 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Pixels, r"Pixels is a type, not an instance; make one: targets.Pixels\(...\)"),
        (np.array([None]), "not an array of object"),
    ],
)
def test_other_things_that_are_no_question(classifier, target, message):
    with pytest.raises(TargetError, match=message):
        explain(classifier, images(), target)


def test_outputs_that_are_no_scores():
    class Complex(Classifier):
        def forward(self, images):
            return torch.complex(super().forward(images), super().forward(images))

    with pytest.raises(
        TargetError, match=r"the output of Complex is complex64 \(strided\), which cannot be class scores"
    ):
        explain(Complex().eval(), images(), 1)
    found = explain(Complex().eval(), images(), lambda out: out.real[:, 1])
    assert found.prediction is None


def test_a_synonym_is_a_name(classifier):
    names = ["lynx, catamount", "tabby, tabby cat", "car", "Tinca, car"]
    assert explain(classifier, images(), "catamount", classes=names).target_names[0] == "lynx, catamount"
    assert explain(classifier, images(), "Tabby Cat", classes=names).target_names[0] == "tabby, tabby cat"
    assert explain(classifier, images(), "car", classes=names).target_names[0] == "car"
    with pytest.raises(TargetError, match="no class 'tabbi' in Classifier; near names: tabby"):
        explain(classifier, images(), "tabbi", classes=names)


# --- targets of the user's own


class Second:
    """Has what a target must have, and is no subclass of Target."""

    def score(self, output):
        return output.logits[:, 1]

    def describe(self, output, image):
        return f"second of image {image}"


def test_an_object_with_score_and_describe_is_a_target(classifier):
    found = explain(classifier, images(2), Second())
    torch.testing.assert_close(found.scores, classifier(images(2)).detach()[:, 1])
    assert found.target_names == ("second of image 0", "second of image 1")
    negated = explain(classifier, images(2), glowmap.targets.Not(Second()))
    torch.testing.assert_close(negated.raw, explain(classifier, images(2), glowmap.targets.Not(1)).raw)


def test_an_object_that_has_more_of_a_target_must_be_a_subclass(classifier):
    class Pinning(Second):
        def pin(self, output, image):
            return self

    with pytest.raises(TargetError, match=r"Pinning has pin, .* make it a subclass of glowmap.targets.Target"):
        explain(classifier, images(2), Pinning())


class Sum(Target):
    """The sum of some targets, by the two methods that every target has and the two of targets made of others."""

    def __init__(self, *targets):
        self.targets = targets

    def children(self):
        return self.targets

    def with_children(self, children):
        return Sum(*children)

    def score(self, output):
        return sum(target.score(output) for target in self.targets)

    def describe(self, output, image):
        return " and ".join(target.describe(output, image) for target in self.targets)


def test_a_target_made_of_others_answers_by_them():
    """Scored again by ablation_cam, the predicted class stays that of the unchanged image; nested targets are pinned too."""
    model = glowmap.load(Segmenter().eval())
    target = Sum(glowmap.targets.Predicted(), Sum(Pixels(1, torch.ones(16, 20)), glowmap.targets.OutputValue(2)))
    found = glowmap.explain(model, images(2), target=target, layer="encoder.2", method="ablation_cam")
    assert found.raw.isfinite().all()
    assert found.raw.abs().max() > 0
    with torch.no_grad():
        batch = model.read(images(2))
        output = model.read_output(model.module(batch.images), batch)
        other = model.read_output({"out": output.raw["out"].flip(1)}, batch)
    pinned = target.pin(output, 0)
    assert float(pinned.score(output)[0]) == pytest.approx(float(target.score(output)[0]))
    assert float(pinned.score(other)[0]) != pytest.approx(float(target.score(other)[0]))
    assert [type(leaf).__name__ for leaf in target.leaves()] == ["Predicted", "Category", "OutputValue"]
    assert target.is_local(output)
    assert target.is_class
    assert target.reads_class_scores
    assert not (target.is_detection)
    assert not (target.reads_raw_output)
    assert not (target.has_layer_score)
    assert not (target.is_prediction)
    assert target.layer_score(output) is None
    assert list(target.cautions(output)) == list(target.needs_layers()) == []


def test_cautions_keep_their_code_for_each_image_of_a_batch(classifier):
    class Doubtful(Second, Target):
        def cautions(self, output):
            return ["a sentence of the user's"]

    sure = 200 * torch.eye(4)[classifier(images(2)).argmax(1)]
    model = glowmap.load(classifier)
    output = model.read_output(sure, model.read(images(2)))
    target = PerImage([glowmap.targets.Probability(int(sure[0].argmax())), Doubtful()])
    saturated, *others = target.cautions(output)
    assert saturated.code == "probability-saturated"
    assert saturated.endswith("(image 0)")
    assert others == ["a sentence of the user's (image 1)"]


def test_children_without_a_way_to_replace_them_are_refused(classifier):
    class Twice(Sum):
        with_children = Target.with_children

    with pytest.raises(TargetError, match="Twice has children and does not define with_children"):
        glowmap.explain(  # which pins the children to each image
            classifier, images(2), target=Twice(glowmap.targets.Category(1)), layer="features", method="ablation_cam"
        )


def test_a_target_with_a_layer_score_of_its_own_shares_no_layer(classifier):
    class Scored(Second, Target):
        def layer_score(self, output):
            return output.logits[:, 1].sum()[None]

    assert Scored().has_layer_score
    assert Sum(Scored()).has_layer_score
    assert PerImage([1, Scored()]).has_layer_score
    assert not PerImage([1, 2]).has_layer_score
    assert glowmap.targets.Unit(1).has_layer_score
    assert glowmap.explain(classifier, images(1), target=Scored()).raw.abs().max() > 0


def test_a_caution_of_a_users_target_gets_a_code(classifier):
    class Doubtful(glowmap.targets.Category):
        def cautions(self, output):
            return ["the labels of this class were noisy"]

    (caution,) = explain(classifier, images(1), Doubtful(1)).cautions
    assert (caution, caution.code, caution.level) == ("the labels of this class were noisy", "of-target", "caution")
