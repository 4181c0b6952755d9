"""Asking again about copies of an image: the model, its other inputs and the target must take them for what they are."""

import threading

import pytest
import torch
from torch import nn

import glowmap
from glowmap.errors import InputError, TargetError
from tiny_models.convolutional import Classifier, images, with_parameters


class Encoder(nn.Module):
    """A transformer layer, whose fused path in evaluation mode calls none of the modules inside it."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)

    def forward(self, images):
        return self.head(self.layer(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize("layer", ["layer.norm1", "layer.linear2"])
def test_a_fused_path_that_goes_past_the_layer_is_noticed(layer):
    model, batch = Encoder().eval(), images(1, 16, 16)
    found = glowmap.explain(model, batch, target=1, layer=layer, method="ablation_cam")
    module, drops, maps = model.get_submodule(layer), [], []
    with torch.no_grad():
        handle = module.register_forward_hook(lambda _m, _i, output: maps.append(output))
        score = model(batch)[0, 1]
        handle.remove()
        for channel in range(16):
            keep = torch.ones(16)
            keep[channel] = 0
            handle = module.register_forward_hook(lambda _m, _i, output: output * keep)  # noqa: B023
            drops.append(score - model(batch)[0, 1])
            handle.remove()
    wanted = (maps[0][0] * torch.stack(drops)).sum(1).reshape(4, 4)
    torch.testing.assert_close(found.raw[0], wanted, rtol=1e-3, atol=1e-5)
    assert float(found.raw.abs().max()) > 1e-3


class Prompted(Classifier):
    """Compares each image with a list of prompts, which may by accident be as many as the images."""

    def forward(self, images, prompts):
        return super().forward(images) @ prompts.T


@pytest.mark.parametrize("method", ["ablation_cam", "occlusion", "input_gradient"])
def test_prompts_as_many_as_the_images_are_no_rows_of_theirs(method):
    model, batch, prompts = Prompted().eval(), images(4), torch.randn(4, 4)
    found = glowmap.explain(model, (batch, prompts), target=0, layer="features.4", method=with_parameters(method))
    for number in range(4):
        alone = glowmap.explain(
            model, (batch[number : number + 1], prompts), target=0, layer="features.4", method=with_parameters(method)
        )
        torch.testing.assert_close(found.raw[number], alone.raw[0], rtol=1e-3, atol=1e-5 * float(alone.raw.abs().max()))
    assert not any("another answer" in caution for caution in found.cautions)


class Scaled(Classifier):
    """Takes a number for each image beside it."""

    def forward(self, images, scale):
        return super().forward(images * scale[:, None, None, None])


@pytest.mark.parametrize("method", ["ablation_cam", "occlusion", "input_gradient"])
def test_what_has_a_row_for_each_image_goes_with_its_image(method):
    model, batch, scale = Scaled().eval(), images(3), torch.tensor([0.5, 2.0, -1.0])
    found = glowmap.explain(model, (batch, scale), target=0, layer="features.4", method=with_parameters(method))
    for number in range(3):
        one = slice(number, number + 1)
        alone = glowmap.explain(
            model, (batch[one], scale[one]), target=0, layer="features.4", method=with_parameters(method)
        )
        torch.testing.assert_close(found.raw[number], alone.raw[0], rtol=1e-3, atol=1e-5 * float(alone.raw.abs().max()))


def test_a_callable_that_goes_by_position_is_refused():
    labels = torch.tensor([0, 1, 2, 3])
    method = glowmap.METHODS["integrated_gradients"].with_parameters(steps=4)
    with pytest.raises(TargetError, match="scores 4 copies of image 0 otherwise than the image itself"):
        glowmap.explain(Classifier().eval(), images(4), target=lambda out: out[torch.arange(4), labels], method=method)
    found = glowmap.explain(Classifier().eval(), images(4), target=labels, method=method)
    assert found.raw.any()


class BatchBound(Classifier):
    def forward(self, images):
        return super().forward(images) - super().forward(images).mean(0) * 0.5


def test_a_model_that_depends_on_its_batch_gets_a_note():
    found = glowmap.explain(BatchBound().eval(), images(3), target=1, method=with_parameters("occlusion"))
    told = [caution for caution in found.cautions if "it depends on the batch" in caution]
    assert [caution.split(",")[0] for caution in told] == [
        f"for copies of image {number} the model gives another output than for the image: it depends on the batch"
        for number in range(3)
    ]


def test_a_model_that_writes_into_its_input_is_smoothed_right():
    class Shifting(Classifier):
        def forward(self, images):
            return super().forward(images.sub_(0.5).mul_(2))

    class Careful(Classifier):
        def forward(self, images):
            return super().forward((images - 0.5) * 2)

    torch.manual_seed(0)
    careless = Shifting().eval()
    careful = Careful().eval()
    careful.load_state_dict(careless.state_dict())
    for smooth in ("flips", "noise", "scales"):
        found, wanted = (
            glowmap.explain(model, images(2), target=1, layer="features.4", smooth=smooth).raw
            for model in (careless, careful)
        )
        torch.testing.assert_close(found, wanted)


def test_smoothing_a_classifier_that_ends_in_a_convolution():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1)).eval()
    found = glowmap.explain(model, images(2), target=1, layer="1", smooth="flips")
    plain, mirrored = (glowmap.explain(model, one, target=1, layer="1").raw for one in (images(2), images(2).flip(-1)))
    torch.testing.assert_close(found.raw, (plain + mirrored.flip(-1)) / 2)


@pytest.mark.parametrize("method", ["rise", "occlusion", "group_cam", "ablation_cam"])
def test_under_the_callers_autocast(method):
    model, batch = Classifier().eval(), images(2)
    wanted = glowmap.explain(model, batch, target=1, layer="features.4", method=with_parameters(method)).raw
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = glowmap.explain(model, batch, target=1, layer="features.4", method=with_parameters(method)).raw
    assert found.dtype == torch.float32
    together = torch.stack([found.flatten(), wanted.flatten()])
    assert float(torch.corrcoef(together)[0, 1]) > 0.9


def test_a_thread_that_only_runs_the_model_meets_none_of_our_stand_ins():
    model, batch = Classifier().eval(), images(2)
    with torch.no_grad():
        wanted = model(batch)
    wrong, done = [], threading.Event()

    def bystander():
        while not done.is_set():
            with torch.no_grad():
                if not torch.equal(model(batch), wanted):
                    wrong.append(1)

    thread = threading.Thread(target=bystander)
    thread.start()
    maps = [glowmap.explain(model, batch, target=1, layer="features.3", method="ablation_cam").raw for _ in range(15)]
    done.set()
    thread.join()
    assert not wrong
    assert all(torch.equal(one, maps[0]) for one in maps)


def test_rounding_is_no_evidence():
    """The head reads the first token alone: no patch of the last layer moves the score."""

    class FirstToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, images):
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            tokens = self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
            return self.head(tokens)[:, 0]

    found = glowmap.explain(FirstToken().eval(), images(2, 16, 16), target=1, layer="norm", method="ablation_cam")
    # taking a channel of the patches away takes none of the first token's
    assert not found.heatmap.any()


@pytest.mark.parametrize("mask", [torch.ones(20, 16), torch.ones(15, 40)])
def test_a_mask_of_another_shape_is_refused(mask):
    found = glowmap.explain(Classifier().eval(), images(1), target=1, layer="features.3")
    with pytest.raises(InputError, match="has another shape than the input of 16 x 20"):
        found.share(mask)


class Matching(nn.Module):
    """Pictures against texts, as many of the one as of the other, as CLIP has them: logits per image, and per text."""

    def __init__(self):
        super().__init__()
        self.tower, self.words = Classifier(classes=6), nn.Embedding(20, 6)

    def forward(self, pixel_values, input_ids):
        pictures, texts = self.tower(pixel_values), self.words(input_ids).mean(1)
        logits = nn.functional.normalize(pictures, dim=1) @ nn.functional.normalize(texts, dim=1).T
        return {"logits": logits, "logits_per_text": logits.T, "texts": texts}


@pytest.mark.parametrize("method", ["rise", "recipro_cam", "ablation_cam", "smooth_grad", "grad_cam"])
@pytest.mark.parametrize("count", [2, 3])
def test_as_many_texts_as_pictures_stay_whole(method, count):
    model, batch = Matching().eval(), images(count)
    texts = torch.randint(0, 20, (count, 4), generator=torch.Generator().manual_seed(4))
    together = glowmap.explain(
        model,
        {"pixel_values": batch, "input_ids": texts},
        target=1,
        layer="tower.features",
        method=with_parameters(method),
    )
    assert not [caution for caution in together.cautions if "another answer" in caution]
    for image in range(count):
        alone = glowmap.explain(
            model,
            {"pixel_values": batch[image : image + 1], "input_ids": texts},
            target=1,
            layer="tower.features",
            method=with_parameters(method),
        )
        torch.testing.assert_close(together.raw[image : image + 1], alone.raw, rtol=1e-4, atol=1e-6)
        assert not [caution for caution in alone.cautions if "another answer" in caution or "is slow" in caution]
