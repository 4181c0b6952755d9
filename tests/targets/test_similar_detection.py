"""One detection of a detector: how like it the likest one found is, and D-RISE on that."""

import numpy as np
import pytest
import torch
from torch import nn

import glowmap
from glowmap.errors import TargetError
from glowmap.targets import SimilarDetection

BOX = (6.0, 4.0, 14.0, 12.0)


class Bright(nn.Module):
    """Known truth: finds the one place it watches for, as surely as it is bright there, and a decoy of another class."""

    def forward(self, images):
        watched = images[:, :, 4:12, 6:14].mean((1, 2, 3))
        decoy = images[:, :, :3, :3].mean((1, 2, 3))
        boxes = torch.tensor([[6.0, 4.0, 14.0, 12.0], [0.0, 0.0, 3.0, 3.0]])
        labels = torch.tensor([1, 2])
        return [
            {"boxes": boxes, "labels": labels, "scores": torch.stack(pair)} for pair in zip(watched, decoy, strict=True)
        ]


def test_the_score_is_overlap_times_score_of_the_likest_of_the_class():
    found = glowmap.explain(
        Bright(),
        torch.full((2, 3, 16, 20), 0.5) * torch.tensor([1.0, 0.5]).reshape(2, 1, 1, 1),
        target=[
            SimilarDetection(1, BOX),
            SimilarDetection(1, (6.0, 4.0, 14.0, 20.0)),
            SimilarDetection(2, BOX),
            SimilarDetection(3, BOX),
        ],
        method=glowmap.METHODS["occlusion"].with_parameters(window=8, stride=8),
    )
    wanted = [
        [0.5, 0.25],
        [0.25, 0.125],
        [0.0, 0.0],
        [0.0, 0.0],
    ]  # the second box is twice as high: an overlap of a half
    for one, scores in zip(found, wanted, strict=True):
        assert one.scores.tolist() == pytest.approx(scores)
    assert found[0].target_names == ("class 1 at 6, 4, 14, 12",) * 2


def test_d_rise_puts_the_heat_where_the_detection_looks():
    inside = np.zeros((16, 20))
    inside[4:12, 6:14] = 1
    method = glowmap.METHODS["d_rise"].with_parameters(masks=400, cells=5)
    found = glowmap.explain(Bright(), torch.ones(1, 3, 16, 20), target=SimilarDetection(1, BOX), method=method)
    heat = found.raw[0] - found.raw.min()
    assert float(heat[4:12, 6:14].mean()) > 2 * float(heat[inside == 0].mean())
    row, column = divmod(int(found.raw[0].argmax()), 20)
    assert inside[row, column]
    elsewhere = glowmap.explain(
        Bright(), torch.ones(1, 3, 16, 20), target=SimilarDetection(2, (0.0, 0.0, 3.0, 3.0)), method=method
    )
    row, column = divmod(int(elsewhere.raw[0].argmax()), 20)
    assert max(row, column) <= 4


def test_a_torchvision_detector_answers_so():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    model.eval().score_thresh = 0.0
    batch = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        said = model(batch)[0]
    target = SimilarDetection(int(said["labels"][0]), said["boxes"][0].tolist())
    method = glowmap.METHODS["occlusion"].with_parameters(window=32, stride=32)
    found = glowmap.explain(model, batch, target=target, method=method)
    assert float(found.scores) == pytest.approx(float(said["scores"][0]), rel=1e-4)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (SimilarDetection(1, (6.0, 4.0, 6.0, 12.0)), "is not left, top, right, bottom with some area"),
        (SimilarDetection(1, (6.0, 4.0)), "is not left, top, right, bottom"),
        (SimilarDetection("car", BOX), "no class 'car' in Bright"),
    ],
)
def test_bad_boxes_and_names(target, message):
    with pytest.raises(TargetError, match=message):
        glowmap.explain(Bright(), torch.ones(1, 3, 16, 20), target=target, method="occlusion")


def test_a_model_that_is_no_detector():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    with pytest.raises(TargetError, match="Sequential does not return boxes, labels and scores"):
        glowmap.explain(model, torch.ones(1, 3, 4, 4), target=SimilarDetection(1, BOX), method="occlusion")
