"""A few of the zoo's architectures that are quick to build and to explain; tests/zoo has them all."""

import pytest

from zoo.table import SPECIMENS
from zoo.test_zoo import test_is_explained_at_the_right_layer as explained_at_the_right_layer

QUICK = {
    ("torch", "residual network of an ECG"),
    ("torch", "residual network of a picture and a table"),
    ("torch", "U-Net of a volume"),
    ("torch", "transformer of patches cut by hand"),
    ("torch", "convolutions under a transformer, the batch second"),
    ("torchvision", "shufflenet_v2_x0_5"),
    ("torchvision", "mobilenet_v3_small"),
    ("torchvision", "vit (6 blocks)"),
    ("torchvision", "lraspp_mobilenet_v3_large"),
    ("timm", "siglip (4 blocks)"),
    ("transformers", "Dinov2WithRegistersForImageClassification"),
    ("transformers", "SwinForImageClassification"),
    ("transformers", "LlavaForConditionalGeneration"),
    ("segmentation_models_pytorch", "Unet of mobilenet_v2"),
    ("open_clip", "ViT (4 blocks)"),
}
SAMPLE = [one for one in SPECIMENS if (one.library, one.name) in QUICK]


@pytest.mark.parametrize("specimen", SAMPLE, ids=lambda one: f"{one.library}: {one.name}")
def test_is_explained_at_the_right_layer(specimen):
    explained_at_the_right_layer(specimen)


def test_none_of_the_sample_has_left_the_zoo():
    assert len(SAMPLE) == len(QUICK)
