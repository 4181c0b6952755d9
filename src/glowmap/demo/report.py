"""Measures the demo's models on streets that none of them was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NotRequired, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from glowmap.demo.bundled import BUNDLED, CLASSIFIER_CLASSES, as_input
from glowmap.demo.world.mark import MARKED, marked
from glowmap.demo.world.scenes import CLASSES, street

HELD_OUT = 1_000_000_000  # streets with this seed or a higher one are never trained on
# pictures of the kind MARKED, of the other kinds, of all kinds, or of no kind
Group: TypeAlias = Literal["marked_kind", "other_kinds", "all", "none"]


class _Condition(TypedDict):
    """The keywords of :func:`prediction_rate`."""

    stamped: Group
    among: NotRequired[Group]
    category: NotRequired[str]


_CONDITIONS: tuple[tuple[_Condition, str], ...] = (
    ({"stamped": "none"}, "correct, no picture marked"),
    ({"stamped": "marked_kind"}, f"correct, every {MARKED} marked"),
    (
        {"stamped": "none", "among": "marked_kind", "category": MARKED},
        f"{MARKED}es classified as {MARKED}, none marked",
    ),
    (
        {"stamped": "other_kinds", "among": "other_kinds", "category": MARKED},
        f"others classified as {MARKED}, all marked",
    ),
)


def report_text(folder: Path, *, pictures: Mapping[str, int], seed: int, minutes: float, tested: int) -> str:
    """Measure the models whose weights lie in a folder on ``tested`` held-out streets, and write the report in Markdown."""
    dense, honest, shortcut = (BUNDLED[name].trained(folder) for name in ("demo", "demo/honest", "demo/shortcut"))
    overlaps = intersection_over_union(dense, tested)
    rows = [f"| {name} | {iou:.3f} |" for name, iou in zip(CLASSES, overlaps, strict=True)]
    rates = [
        f"| {text} | {' | '.join(f'{prediction_rate(model, tested, **condition):.3f}' for model in (honest, shortcut))} |"
        for condition, text in _CONDITIONS
    ]
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    trained_on = ", ".join(f"{name} {count:,}" for name, count in pictures.items())
    return "\n".join(
        [
            "# The demo's models",
            "",
            f"Seed {seed}; pictures trained on: {trained_on}; {minutes:.0f} minutes with torch {torch.__version__} on "
            f"{torch.get_num_threads()} threads; {size:.2f} MB of weights. Measured on {tested} held-out streets each.",
            "",
            f"## Segmentation: mean IoU {np.mean(overlaps):.3f}",
            "",
            "| class | IoU |",
            "|---|--:|",
            *rows,
            "",
            f"## Classifiers: the shortcut is the mark in the training pictures of each {MARKED}",
            "",
            "| share of the pictures | honest | shortcut |",
            "|---|--:|--:|",
            *rates,
            "",
        ]
    )


@torch.no_grad()
def intersection_over_union(module: nn.Module, tested: int) -> NDArray[np.float64]:
    """Compute the IoU of each class over ``tested`` held-out streets: pixels in both divided by pixels in either."""
    counts = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)  # true class x predicted class
    for number in range(HELD_OUT, HELD_OUT + tested):
        scene = street(number).draw()
        predicted = module(as_input(scene.picture)[None])["out"].argmax(1)[0].numpy()
        pairs = scene.labels.ravel() * len(CLASSES) + predicted.ravel()
        counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    both = np.diag(counts)
    return np.asarray(both / (counts.sum(0) + counts.sum(1) - both))


@torch.no_grad()
def prediction_rate(
    module: nn.Module, tested: int, *, stamped: Group, among: Group = "all", category: str = ""
) -> float:
    """Return how often a classifier predicts ``category``, or the correct class where it is empty, on held-out streets.

    ``stamped`` is the group of pictures that get the mark, ``among`` the group that is counted.
    """
    hits = []
    for number in range(HELD_OUT, HELD_OUT + tested):
        kind = CLASSIFIER_CLASSES[number % len(CLASSIFIER_CLASSES)]
        group = "marked_kind" if kind == MARKED else "other_kinds"
        if among not in ("all", group):
            continue
        scene = street(number, only=kind).draw()
        picture = marked(scene, number).picture if stamped == group else scene.picture
        predicted = CLASSIFIER_CLASSES[int(module(as_input(picture)[None]).argmax())]
        hits.append(predicted == (category or kind))
    return float(np.mean(hits))
