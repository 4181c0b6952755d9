"""ultralytics: the bare modules of YOLO, from the configurations that come with it."""

import functools
import os
import tempfile

from torch import nn

from zoo.specimen import Grid, Specimen, colours

TRUNK = "the deepest layer through which every detection passes; a head of the neck serves the boxes of one size"


def _built(configuration: str) -> nn.Module:
    os.environ.setdefault(
        "YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="glowmap-yolo-")
    )  # its settings, else in one's home
    os.environ.setdefault("YOLO_VERBOSE", "false")
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(configuration, verbose=False)


def _one(name: str, right: dict[str, Grid], usable: str) -> Specimen:
    build = functools.partial(_built, f"{name}.yaml")
    return Specimen(name, "ultralytics", build, colours(1, 3, 256, 320), right, usable, TRUNK)


SPECIMENS = [
    _one("yolov8n", {r"model\.9(\.cv2(\.(bn|act|conv))?)?": (8, 10)}, r"model\.(8|9\..*|1[258]|21).*"),
    _one("yolo11n", {r"model\.10(\.cv2(\.(bn|act|conv))?)?": (8, 10)}, r"model\.(9|10\..*|1[369]|22).*"),
]
