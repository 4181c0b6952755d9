"""Whether heat lies where it should: trained models in a world with known truth."""

import numpy as np
import pytest

pytest.importorskip("torchvision")

from functools import cache

import glowmap
from glowmap.demo.report import HELD_OUT
from glowmap.demo.world.mark import MARKED, mark_mask, marked
from glowmap.demo.world.scenes import street
from glowmap.targets import At, Contrast, Not, Pixels

NEEDS = {name: {*method.needs} for name, method in glowmap.METHODS.items()}
# One pass back, and about the class that is asked for; those that look at the layer alone know no class, and Grad-CAM++, which
# keeps positive gradients alone, tells classes of a dense head hardly apart.
BY_GRADIENT = [name for name in NEEDS if NEEDS[name] == {"activations", "gradients"} and name != "grad_cam_pp"]
LAYERS = [f"backbone.layer{number}" for number in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def demo():
    return glowmap.load("demo")


@cache
def streets_with(*kinds, count=12, least=300):
    """Return held-out streets in which each of these kinds covers at least ``least`` pixels."""
    scenes, number = [], HELD_OUT
    while len(scenes) < count:
        scene = street(number).draw()
        if all(scene.mask(kind).sum() >= least for kind in kinds):
            scenes.append(scene)
        number += 1
    return scenes


def shares_by_method(explainer, scenes, kinds, targets, methods):
    """The share of the heat on each kind's pixels, method -> scenes x explanations x kinds, from one pass a scene."""
    shares = {method: [] for method in methods}
    for scene in scenes:
        explanations = explainer(scene.picture, target=targets, method=methods)
        for method in methods:
            of_method = [explanation for explanation in explanations if explanation.method == method]
            shares[method].append([[each.share(scene.mask(kind))[0].value for kind in kinds] for each in of_method])
    return {method: np.array(values) for method, values in shares.items()}


COMMON = ["grad_cam", "hires_cam", "layer_cam", "elementwise_grad_cam", "xgrad_cam"]


def chance(kind):
    return np.mean([scene.mask(kind).mean() for scene in streets_with(kind)])


@pytest.fixture(scope="module")
def car_shares_by_layer(demo):
    explainer = glowmap.Explainer(demo, layer=LAYERS)
    return shares_by_method(explainer, streets_with("car"), ["car"], "car", COMMON)


@pytest.mark.parametrize("method", COMMON)
def test_deeper_layers_gather_more_heat_on_the_object(car_shares_by_layer, method):
    first, *_, last = car_shares_by_layer[method][..., 0].mean(0)
    assert last > (2 if method == "grad_cam" else 1.1) * first
    assert last > 3 * chance("car")


@pytest.mark.parametrize(("name", "methods"), [("demo", ["grad_cam", "hires_cam"]), ("demo/honest", ["grad_cam"])])
def test_the_selected_layer_is_among_the_best_by_the_heat_on_the_object(name, methods):
    """Compared with the four stages of the backbone."""
    model = glowmap.load(name)
    stages = LAYERS if name == "demo" else ["layer1", "layer2", "layer3", "layer4"]
    shares = {method: {"found": [], "named": []} for method in methods}
    for kind in ["car", "person"] if name == "demo" else ["car", "bicycle"]:
        alone = [street(number, only=kind).draw() for number in range(HELD_OUT, HELD_OUT + 6)]
        for explainer, layer in (
            (glowmap.Explainer(model), "found"),
            (glowmap.Explainer(model, layer=stages), "named"),
        ):
            scenes = streets_with(kind, count=6) if name == "demo" else alone
            for method, values in shares_by_method(explainer, scenes, [kind], kind, methods).items():
                shares[method][layer].extend(values[..., 0])
    for method in methods:
        assert np.mean(shares[method]["found"]) > 0.95 * np.mean(shares[method]["named"], 0).max(), method


@pytest.fixture(scope="module")
def car_and_person_shares(demo):
    scenes, kinds = streets_with("car", "person", count=8), ["car", "person"]
    return shares_by_method(glowmap.Explainer(demo), scenes, kinds, kinds, BY_GRADIENT)


@pytest.mark.parametrize("method", BY_GRADIENT)
def test_the_target_class_decides_where_the_heat_lies(car_and_person_shares, method):
    (car_on_car, car_on_person), (person_on_car, person_on_person) = car_and_person_shares[method].mean(0)
    assert car_on_car > 2 * person_on_car
    assert person_on_person > 2 * car_on_person


@pytest.fixture(scope="module")
def car_and_counterfactual_shares(demo):
    targets = ["car", Not("car")]
    return shares_by_method(glowmap.Explainer(demo), streets_with("car"), ["car"], targets, COMMON)


@pytest.mark.parametrize("method", COMMON)
def test_evidence_against_the_class_avoids_the_object(car_and_counterfactual_shares, method):
    """The counterfactual of the Grad-CAM paper (section 3.2): the negated score lights up what lowers it."""
    for_it, against = car_and_counterfactual_shares[method][..., 0].mean(0)
    assert against < 0.75 * for_it
    if method == "grad_cam":
        assert against < chance("car")


def two_cars_apart(count):
    """Return held-out streets with two cars that do not touch, and the mask of each and a point on it (x, y)."""
    number, found = HELD_OUT, []
    while len(found) < count:
        scene = street(number).draw()
        number += 1
        masks = [scene.instances == owner for owner, kind in enumerate(scene.objects, 1) if kind == "car"]
        masks = [mask for mask in masks if mask.sum() >= 150]
        if len(masks) != 2:
            continue
        left, right = sorted((np.nonzero(mask)[1] for mask in masks), key=np.mean)
        if left.max() + 12 >= right.min():
            continue
        points = []
        for mask in masks:
            rows, columns = np.nonzero(mask)
            middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            points.append((int(columns[middle]), int(rows[middle])))
        found.append((scene, masks, points))
    return found


def test_the_car_under_a_point_has_the_heat_and_the_other_car_has_none(demo):
    for scene, masks, points in two_cars_apart(4):
        pointed = [At(*point) for point in points]
        found = glowmap.explain(demo, scene.picture, target=pointed, layer="backbone.layer4")
        for own, (one, point) in enumerate(zip(found, points, strict=True)):
            assert one.method == "hires_cam"
            assert one.target_names == (f"car (object at {point[0]}, {point[1]})",)
            assert one.share(masks[own])[0].value > 0.6
            assert one.share(masks[1 - own])[0].value < 0.02


def test_the_heat_of_car_rather_than_bus_lies_on_the_car(demo):
    """Evidence for both classes cancels, so that the heat lies on the car; the border excludes the street."""
    for scene, masks, points in two_cars_apart(2):
        for asked in (
            Contrast("car", "bus"),
            Pixels(Contrast("car", "bus"), At(*points[0])),
            Pixels("car", At(*points[0]), border=3),
        ):
            found = glowmap.explain(demo, scene.picture, target=asked, layer="backbone.layer4")
            cars = scene.mask("car") if isinstance(asked, Contrast) else masks[0]
            assert found.share(cars)[0].value > 0.6


def lies_on(mask, explanation, reach=8):
    """Return whether the hottest pixel lies in the mask or within one cell of the layer's grid."""
    row, column = np.unravel_index(int(explanation.heatmap[0].argmax()), mask.shape)
    return bool(mask[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1].any())


def test_the_shortcut_is_detected():
    """Both classifiers are right, and Grad-CAM distinguishes them: one relies on the object, the other on the mark."""
    explainers = {name: glowmap.Explainer(glowmap.load(f"demo/{name}")) for name in ("honest", "shortcut")}
    on_mark, on_object, shares = (
        {"honest": 0, "shortcut": 0},
        {"honest": 0, "shortcut": 0},
        {"honest": [], "shortcut": []},
    )
    for number in range(HELD_OUT, HELD_OUT + 20):
        scene = marked(street(number, only=MARKED).draw(), number)
        mark, bus = mark_mask(128, 192, number), scene.mask(MARKED)
        for name, explainer in explainers.items():
            explanation = explainer(scene.picture, target=MARKED)
            on_mark[name] += lies_on(mark, explanation)
            on_object[name] += lies_on(bus, explanation)
            shares[name].append(
                (explanation.share(mark)[0].value / mark.mean(), explanation.share(bus)[0].value / bus.mean())
            )
    assert on_mark["shortcut"] >= 19
    assert on_object["honest"] >= 18
    assert on_mark["honest"] <= 1
    densest = {name: np.mean(both, 0) for name, both in shares.items()}  # heat on mark and object, in times of chance
    assert densest["shortcut"][0] > 15 > 5 > densest["honest"][0]
    assert densest["honest"][1] > 2 * densest["shortcut"][1]


@pytest.mark.parametrize("kind", ["car", "bicycle", "person"])
def test_for_other_classes_the_shortcut_model_relies_on_the_object_too(kind):
    explainer = glowmap.Explainer(glowmap.load("demo/shortcut"))
    scenes = [street(number, only=kind).draw() for number in range(HELD_OUT, HELD_OUT + 12)]
    assert sum(lies_on(scene.mask(kind), explainer(scene.picture, target=kind)) for scene in scenes) >= 10
