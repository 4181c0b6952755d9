"""Around any method: averages over changed images, fused layers, and heat that follows the picture's edges."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import glowmap
from glowmap.errors import MethodError
from glowmap.render import follow_edges
from glowmap.targets import Pixels
from tiny_models.convolutional import Classifier, Segmenter, images


def resized(values, size):
    return F.interpolate(values, size, mode="bilinear", align_corners=False)


@pytest.fixture
def segmenter():
    return Segmenter().eval()


def test_flips_average_the_map_and_the_mirror_images_map_laid_back(segmenter):
    """The mask stays where it was asked for: the peer flips the picture and not the mask."""
    batch, mask = images(2, 16, 20), torch.zeros(16, 20)
    mask[3:9, 1:6] = 1
    found = glowmap.explain(segmenter, batch, target=Pixels(2, mask), layer="encoder.2", smooth="flips")
    plain = glowmap.explain(segmenter, batch, target=Pixels(2, mask), layer="encoder.2")
    mirrored = glowmap.explain(segmenter, batch.flip(-1), target=Pixels(2, mask.flip(-1)), layer="encoder.2")
    torch.testing.assert_close(found.raw, (plain.raw + mirrored.raw.flip(-1)) / 2)
    assert (found.raw - plain.raw).abs().max() > 0.01 * plain.raw.abs().max()
    assert torch.equal(found.scores, plain.scores)
    assert found.method == "hires_cam + flips"


def test_the_answer_that_is_asked_about_is_the_unchanged_images():
    model, batch = Classifier().eval(), images(4)
    plain = glowmap.explain(model, batch, layer="features.3")
    found = glowmap.explain(model, batch, layer="features.3", smooth="flips")
    asked = model(batch).argmax(1)
    mirrored = glowmap.explain(model, batch.flip(-1), target=asked, layer="features.3")
    torch.testing.assert_close(found.raw, (plain.raw + mirrored.raw.flip(-1)) / 2)
    assert found.target_names == plain.target_names


def test_scales_average_three_sizes_at_the_unchanged_images_grid():
    model, batch = Classifier().eval(), images(2, 40, 60)
    found = glowmap.explain(model, batch, target=1, layer="features.0", smooth="scales")
    raws = [
        glowmap.explain(model, resized(batch, size), target=1, layer="features.0").raw[:, None]
        for size in ((36, 54), (40, 60), (44, 66))
    ]
    wanted = sum(resized(raw, raws[1].shape[2:]) for raw in raws)[:, 0] / 3
    torch.testing.assert_close(found.raw, wanted)


def test_noise_repeats_itself_and_a_batch_is_its_images():
    model, batch = Classifier().eval(), images(3)
    options = {"target": 1, "layer": "features.3", "method": "hires_cam", "smooth": "noise"}
    found = glowmap.explain(model, batch, **options)
    assert torch.equal(found.raw, glowmap.explain(model, batch, **options).raw)
    assert not torch.equal(found.raw, glowmap.explain(model, batch, **options, seed=1).raw)
    singles = [glowmap.explain(model, image[None], **options).raw[0] for image in batch]
    torch.testing.assert_close(found.raw, torch.stack(singles))
    plain = glowmap.explain(model, batch, target=1, layer="features.3", method="hires_cam").raw
    assert 0.01 < float((found.raw - plain).norm() / plain.norm()) < 0.8


def test_kinds_of_smoothing_combine():
    model, batch = Classifier().eval(), images(1, 40, 60)
    both = glowmap.explain(model, batch, target=1, layer="features.0", smooth=["flips", "scales"])
    one, other = (
        glowmap.explain(model, picture, target=1, layer="features.0", smooth="scales").raw
        for picture in (batch, batch.flip(-1))
    )
    torch.testing.assert_close(both.raw, (one + other.flip(-1)) / 2)
    assert both.method == "grad_cam + flips + scales"


def test_the_principal_component_takes_the_place_of_the_sum():
    model, batch = Classifier().eval(), images(2)
    found = glowmap.explain(model, batch, target=1, layer="features.3", method="hires_cam", smooth="principal")
    wanted = glowmap.explain(model, batch, target=1, layer="features.3", method="eigen_grad_cam")
    torch.testing.assert_close(found.raw, wanted.raw)
    pooled = glowmap.explain(model, batch, target=1, layer="features.3", smooth=["principal", "flips"])
    alone = [
        glowmap.explain(model, one, target=1, layer="features.3", smooth="principal").raw
        for one in (batch, batch.flip(-1))
    ]
    torch.testing.assert_close(pooled.raw, (alone[0] + alone[1].flip(-1)) / 2)
    with pytest.raises(MethodError, match="eigen_cam adds up no channels"):
        glowmap.explain(model, batch, target=1, layer="features.3", method="eigen_cam", smooth="principal")


def test_an_unknown_smoothing_gets_the_near_names():
    with pytest.raises(MethodError, match="no smoothing 'flip'; near names: flips"):
        glowmap.explain(Classifier(), images(), target=1, layer="features.3", smooth="flip")


@pytest.mark.parametrize("how", ["mean", "max", "product"])
def test_layers_fused(segmenter, how):
    target = [Pixels(1, torch.ones(16, 20)), Pixels(2, torch.ones(16, 20))]
    several = glowmap.explain(segmenter, images(2, 16, 20), target=target, layer=["encoder.0", "encoder.2"])
    found = several.fused(how)
    assert len(found) == 2
    for number, one in enumerate(found):
        first, second = several[2 * number].heatmap, several[2 * number + 1].heatmap
        wanted = {"mean": (first + second) / 2, "max": torch.maximum(first, second), "product": first * second}[how]
        torch.testing.assert_close(one.raw, wanted)
        assert one.target_names == several[2 * number].target_names
        assert one.layer == "encoder.0, encoder.2"
        assert one.method == f"hires_cam, {how} of layers"


def test_layers_are_fused_in_three_ways_only(segmenter):
    found = glowmap.explain(
        segmenter, images(1), target=Pixels(1, torch.ones(16, 20)), layer=["encoder.0", "encoder.2"]
    )
    with pytest.raises(MethodError, match="layers are fused by mean, max, product, not by 'sum'"):
        found.fused("sum")


def he_sun_and_tang(heat, colours, reach, smoothest):
    """Equations 14 to 16 of the guided filter, pixel by pixel."""
    rows, columns = heat.shape
    slopes, offsets = np.zeros((rows, columns, 3)), np.zeros((rows, columns))

    def window(y, x):
        return np.s_[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]

    for y in range(rows):
        for x in range(columns):
            guide, values = colours[window(y, x)].reshape(-1, 3), heat[window(y, x)].ravel()
            spread = np.cov(guide.T, bias=True) + smoothest * np.eye(3)
            together = (guide * values[:, None]).mean(0) - guide.mean(0) * values.mean()
            slopes[y, x] = np.linalg.inv(spread) @ together
            offsets[y, x] = values.mean() - slopes[y, x] @ guide.mean(0)
    return np.array(
        [
            [
                slopes[window(y, x)].reshape(-1, 3).mean(0) @ colours[y, x] + offsets[window(y, x)].mean()
                for x in range(columns)
            ]
            for y in range(rows)
        ]
    ).clip(0, 1)


def test_heat_follows_the_edges_as_the_paper_says():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8))
    heat = rng.random((9, 12)).astype(np.float32)
    found = follow_edges(heat, picture, 2)
    wanted = he_sun_and_tang(heat.astype(float), np.asarray(picture) / 255, 2, 1e-3)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_blurred_border_is_drawn_to_the_pictures_edge():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 33:] = 200
    coarse = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32).repeat(3, 0)  # the border lies at column 30, and is 15 wide
    found = follow_edges(coarse, Image.fromarray(pixels))
    step = found[:, 33] - found[:, 32]
    assert (step > 0.4).all()
    assert np.abs(np.diff(found[:, :33])).max() < 0.1
    explanation = glowmap.explain(
        torch.nn.Sequential(torch.nn.AvgPool2d(10), torch.nn.Identity()),
        torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255,
        target=lambda output: output.sum((1, 2, 3)),
        layer="0",
    )
    assert explanation.overlay(edges=True) != explanation.overlay()


@pytest.mark.parametrize("smooth", ["flips", "scales", ["noise", "principal"]])
def test_targets_that_are_smoothed_together_have_the_maps_of_each_alone(smooth):
    model = Classifier().eval()
    together = glowmap.explain(model, images(2), target=[0, 1, 2], layer="features", smooth=smooth)
    for target, explanation in enumerate(together):
        alone = glowmap.explain(model, images(2), target=target, layer="features", smooth=smooth)
        torch.testing.assert_close(explanation.raw, alone.raw)
