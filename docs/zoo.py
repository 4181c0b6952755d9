"""Find the layer of every architecture in tests/zoo, and write down in docs/models.md which it is and whether it is right."""

import argparse
import gc
import importlib
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import glowmap
from glowmap.errors import GlowmapError
from glowmap.shapes import crossed

DOCS = Path(__file__).parent
HEAD = (
    "| architecture | input | layer | read as | coverage | judged | forward passes |\n|---|---|---|---|---|---|---|\n"
)
LIBRARIES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "transformers",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "open_clip": "open_clip",
    "ultralytics": "ultralytics",
    "torch": "Modules of one's own",
}
INTRODUCTION = """\
# The layer that is found

`glowmap.explain(model, images)` needs no layer. It runs the model once on the first image and records the output of
every module. One backward pass then shows where each output has a gradient. An output is read as maps with the help
of the grids that the model's own convolutions make of this input: channels first or last, or tokens, with class and
register tokens before them. Where that leaves a doubt, a few cells are differentiated by the pixels, which shows
where they look. The layer of a classifier is the last output through which all of the gradient by the image goes and
which still has a grid. For a model with an output per place (segmentation, detection, depth) it is the end of the
encoder. `Explainer.layer` shows what was found and why.

The table shows the result for {count} architectures with random weights, written by `docs/zoo.py`. *Read as* is the
layout with the grid of the maps. *Coverage* is the share of its cells where the output has a gradient. *Judged*
compares the layer with the one that somebody who knows the architecture would choose: right, usable (a true map, but
coarser, earlier or of fewer channels than the best), or wrong. The expected layers (`tests/zoo`) were written down
before anything was run; six entries were corrected afterwards, where the model's own code showed that they were
misread. *Forward passes* is the cost of the search, once for a model and the shape of its input.

"""


@dataclass(frozen=True)
class Row:
    """What was found in one architecture."""

    library: str
    name: str
    given: str
    layer: str
    layout: str
    coverage: float
    verdict: str
    ratio: float

    def __str__(self) -> str:
        coverage = "" if math.isnan(self.coverage) else f"{self.coverage:.0%}"
        ratio = f"{self.ratio:.0f}" if self.ratio < 20 else f"{round(self.ratio, -1):.0f}"
        cells = [self.name, self.given, self.layer, self.layout, coverage, self.verdict, ratio]
        return "| " + " | ".join(cells) + " |\n"


def called(module: nn.Module, given: Any) -> Any:
    """Call a module with what a specimen's ``inputs`` made: a tensor, a tuple of arguments or a dict of keywords."""
    if isinstance(given, dict):
        return module(**given)
    return module(*given) if isinstance(given, tuple) else module(given)


def shown(given: Any) -> str:
    """Describe an input by the shapes of its tensors, without the batch."""
    if isinstance(given, dict):
        return ", ".join(f"{name} {shown(value)}" for name, value in given.items())
    if isinstance(given, tuple):
        return ", ".join(shown(value) for value in given)
    return crossed(given.shape[1:]) if isinstance(given, Tensor) else str(given)


def seconds(module: nn.Module, given: Any, runs: int = 3) -> float:
    """Time the quickest of a few forward passes."""
    quickest = math.inf
    with torch.no_grad():
        for _ in range(runs):
            start = time.perf_counter()
            called(module, given)
            quickest = min(quickest, time.perf_counter() - start)
    return quickest


def found(specimen: Any) -> Row:
    """Build one architecture and let its layer be found."""
    module, given = specimen.made(), specimen.inputs()
    forward = seconds(module, given)
    start = time.perf_counter()
    try:
        model = glowmap.load(module)
        detects = model.readers.are_detections
        # through which every detection passes, and not the surest alone
        choice = glowmap.Explainer(model).find(given, target=0 if detects else None)
    except GlowmapError as error:
        expected = specimen.refused and specimen.refused in str(error)
        layer, layout, coverage, verdict = "none", str(error), math.nan, "rightly none" if expected else "**none**"
    else:
        layer, layout, coverage = f"`{choice.name}`", str(choice.layout), choice.coverage
        verdict = specimen.judge(choice.name, choice.grid)
        verdict = "**wrong**" if verdict == "wrong" else verdict
    ratio = (time.perf_counter() - start) / forward
    return Row(specimen.library, specimen.name, shown(given), layer, layout, coverage, verdict, ratio)


def rows(specimens: Sequence[Any]) -> Iterator[Row]:
    """Find the layers one after another, in little memory, telling each as it comes."""
    for specimen in specimens:
        row = found(specimen)
        sys.stdout.write(str(row))
        sys.stdout.flush()
        gc.collect()
        yield row


def counted(found: Sequence[Row]) -> str:
    """Say how many were right, usable, wrong and none."""
    verdicts = Counter(row.verdict.strip("*") for row in found)
    return ", ".join(
        f"{verdicts[one]} {one}" for one in ("right", "usable", "rightly none", "wrong", "none") if verdicts[one]
    )


def page(found: Sequence[Row]) -> str:
    """Lay all rows out, a table for a library."""
    text = INTRODUCTION.format(count=len(found)) + f"Of the {len(found)}: {counted(found)}.\n"
    for library, title in LIBRARIES.items():
        table = "".join(str(row) for row in found if row.library == library)
        text += f"\n## {title}\n\n{HEAD}{table}"
    return text


def main() -> None:
    """Look at the architectures whose names or libraries hold one of the words given, or at all of them, and write those down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="look only at what has one of these in its name or library")
    parser.add_argument("--no-write", action="store_true", help="leave docs/models.md as it is")
    given = parser.parse_args()
    torch.set_num_threads(
        1
    )  # more of them only wait for each other where the cores are shared: the ratios would say that
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no weights are wanted
    sys.path[0] = str(DOCS.parent / "tests")  # in the place of this folder, whose zoo is this script
    specimens = importlib.import_module("zoo.table").SPECIMENS
    words = [word.lower() for word in given.words]
    specimens = [
        one for one in specimens if not words or any(word in f"{one.library} {one.name}".lower() for word in words)
    ]
    seen = list(rows(specimens))
    sys.stdout.write(f"{counted(seen)}\n")
    if not words and not given.no_write:
        (DOCS / "models.md").write_text(page(seen))


if __name__ == "__main__":
    main()
