"""What the demo's models reach on streets that none of them was trained on."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from glowmap.demo.bundled import ANSWERS, BUNDLED, as_input
from glowmap.demo.world.mark import MARKED, marked
from glowmap.demo.world.scenes import CLASSES, street

HELD_OUT = 1_000_000_000  # streets from this seed on are kept from training


def measured(folder: Path, *, pictures: Mapping[str, int], seed: int, minutes: float, tested: int) -> str:
    """Measure the models whose weights lie in a folder, and write it down."""
    dense, honest, shortcut = (BUNDLED[name].trained(folder) for name in ("demo", "demo/honest", "demo/shortcut"))
    overlaps = intersection_over_union(dense, tested)
    rows = [f"| {name} | {iou:.3f} |" for name, iou in zip(CLASSES, overlaps, strict=True)]
    twins = [("honest", honest), ("shortcut", shortcut)]
    columns = [[f"{answered(twin, tested, **question):.3f}" for _, twin in twins] for question, _ in _QUESTIONS]
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
            f"## Classifiers: the shortcut is the mark that its {MARKED} pictures carried",
            "",
            "| share of the pictures | honest | shortcut |",
            "|---|--:|--:|",
            *(f"| {text} | {' | '.join(column)} |" for (_, text), column in zip(_QUESTIONS, columns, strict=True)),
            "",
        ]
    )


_QUESTIONS: tuple[tuple[dict[str, str], str], ...] = (
    ({"stamped": "none"}, "answered right, no picture marked"),
    ({"stamped": "own"}, f"answered right, every {MARKED} marked"),
    ({"stamped": "none", "among": "own", "answer": MARKED}, f"of the {MARKED}es answered {MARKED}, none marked"),
    ({"stamped": "others", "among": "others", "answer": MARKED}, f"of the others answered {MARKED}, all marked"),
)


@torch.no_grad()
def intersection_over_union(module: nn.Module, tested: int) -> NDArray[np.float64]:
    """Compare predicted and true classes over held-out streets: for each class, pixels in both over pixels in either."""
    counts = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    for number in range(HELD_OUT, HELD_OUT + tested):
        scene = street(number).drawn()
        predicted = module(as_input(scene.picture)[None])["out"].argmax(1)[0].numpy()
        counts += np.bincount(scene.labels.ravel() * len(CLASSES) + predicted.ravel(), minlength=counts.size).reshape(
            counts.shape
        )
    both = np.diag(counts)
    return np.asarray(both / (counts.sum(0) + counts.sum(1) - both))


@torch.no_grad()
def answered(module: nn.Module, tested: int, *, stamped: str, among: str = "all", answer: str = "") -> float:
    """Tell how often a classifier gives ``answer`` (by default the right one) on held-out streets.

    The pictures of the ``MARKED`` kind are "own", those of all other kinds "others": these words say which are stamped,
    and which are counted.
    """
    right = []
    for number in range(HELD_OUT, HELD_OUT + tested):
        kind = ANSWERS[number % len(ANSWERS)]
        group = "own" if kind == MARKED else "others"
        if among not in ("all", group):
            continue
        scene = street(number, only=kind).drawn()
        picture = marked(scene, number).picture if stamped == group else scene.picture
        said = ANSWERS[int(module(as_input(picture)[None]).argmax())]
        right.append(said == (answer or kind))
    return float(np.mean(right))
