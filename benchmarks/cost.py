"""Show what Grad-CAM costs: Glowmap beside a bare forward pass and beside the plain recipe of hooks and ``backward()``.

Run ``python benchmarks/cost.py --help``. All figures are of one run on one machine and nothing is asserted: times on a busy
machine are what they are. The variants take turns round by round, so that noise hits them alike, and what is compared are
the ratios within a round. Peak memory is measured in a fresh process for each case and variant.
"""

import ctypes
import datetime
import gc
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.segmentation import deeplabv3_resnet50

import glowmap

CATEGORY = 7


@dataclass(frozen=True)
class Case:
    """A model, what is asked of it, and how often the clock runs, as a share of ``--rounds``."""

    build: Callable[..., nn.Module]
    layer: str
    shape: tuple[int, ...]
    share: float
    dense: bool = False


CASES = {
    "ResNet-50, 1 image": Case(resnet50, "layer4", (1, 3, 224, 224), 1),
    "ResNet-50, 8 images": Case(resnet50, "layer4", (8, 3, 224, 224), 0.35),
    "DeepLabV3, 1 image": Case(deeplabv3_resnet50, "backbone.layer4", (1, 3, 375, 500), 0.35, dense=True),
}


class Subject:
    """A case built: the model with random weights, its input, and the same question in Glowmap's words and in plain ones."""

    def __init__(self, case: Case, shape: tuple[int, ...] | None = None) -> None:
        torch.manual_seed(0)
        self.dense, self.layer = case.dense, case.layer
        bare_of_weights = {"weights": None} | ({"weights_backbone": None} if case.dense else {})
        self.model = case.build(**bare_of_weights).eval()
        self.ask(torch.rand(shape or case.shape))

    def ask(self, images: Tensor) -> None:
        """Put other images in, of any size; the mask of a dense model covers the middle ninth of them."""
        self.images = images
        rows, columns = images.shape[2:]
        self.mask = torch.zeros(rows, columns, dtype=torch.bool)
        self.mask[rows // 3 : rows * 2 // 3, columns // 3 : columns * 2 // 3] = True
        self.target: Any = glowmap.targets.Pixels(CATEGORY, self.mask) if self.dense else CATEGORY

    def score(self, output: Any) -> Tensor:
        """Sum the class's logits, over the images or over the mask."""
        if self.dense:
            return (output["out"][:, CATEGORY] * self.mask).sum()
        logits: Tensor = output[:, CATEGORY]
        return logits.sum()


# Each variant prepares, off the clock, what the clock then runs.
Action = Callable[[], Any]


def bare(subject: Subject) -> Action:
    """Run the forward pass alone, without autograd."""

    def run() -> None:
        with torch.no_grad():
            subject.model(subject.images)

    return run


def glowmap_grad_cam(subject: Subject) -> Action:
    """Ask Glowmap as its users do, up to the heatmap."""
    explainer = glowmap.Explainer(subject.model, layer=subject.layer)

    def run() -> Tensor:
        explanation = explainer(subject.images, target=subject.target)
        assert isinstance(explanation, glowmap.Explanation)
        return explanation.heatmap

    return run


def recipe(subject: Subject) -> Action:
    """Follow the recipe that everyone starts from: two hooks, ``backward()`` through the whole model, weights included."""
    layer, kept = subject.model.get_submodule(subject.layer), {}

    def keep_activations(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept["activations"] = output

    def keep_gradients(_module: nn.Module, _inputs: Any, gradients: Any) -> None:
        kept["gradients"] = gradients[0]

    def run() -> Tensor:
        hooks = [layer.register_forward_hook(keep_activations), layer.register_full_backward_hook(keep_gradients)]
        subject.model.zero_grad()
        subject.score(subject.model(subject.images)).backward()
        for hook in hooks:
            hook.remove()
        weights = kept["gradients"].mean((2, 3), keepdim=True)
        raw = (weights * kept["activations"].detach()).sum(1, keepdim=True).relu()
        maps = F.interpolate(raw, subject.images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return (maps - low) / (high - low + 1e-8)

    return run


def head_backward(subject: Subject) -> Action:
    """Differentiate the head by the layer's output alone, its parameters frozen: the least that Grad-CAM must add."""
    model: Any = subject.model
    with torch.no_grad():
        maps = model.backbone(subject.images)["out"]
    maps.requires_grad_()
    # Frozen while the graph is built, and given back at once: the other variants need the model in its normal state.
    head = model.classifier.requires_grad_(False)
    logits = F.interpolate(head(maps), subject.images.shape[2:], mode="bilinear", align_corners=False)
    head.requires_grad_(True)
    score = subject.score({"out": logits})
    return lambda: torch.autograd.grad(score, maps)


BARE, GLOWMAP, RECIPE, HEAD, IDEAL = "bare forward", "Glowmap", "plain recipe", "head backward", "ideal"
VARIANTS = {BARE: bare, GLOWMAP: glowmap_grad_cam, RECIPE: recipe, HEAD: head_backward}

Rounds = dict[str, list[float]]


def timed(subject: Subject, rounds: int) -> Rounds:
    """Let the variants take turns, after one turn to warm up, and write down the seconds of each."""
    variants = [name for name in VARIANTS if subject.dense or name != HEAD]
    seconds: Rounds = {name: [] for name in variants}
    for number in range(rounds + 1):
        turn = number % len(variants)  # who begins changes, so that none always runs in another's wake
        for name in variants[turn:] + variants[:turn]:
            action = VARIANTS[name](subject)
            gc.collect()
            start = time.perf_counter()
            action()
            if number:
                seconds[name].append(time.perf_counter() - start)
    if subject.dense:
        backward = seconds.pop(HEAD)
        seconds[IDEAL] = [sum(pair) for pair in zip(seconds[BARE], backward, strict=True)]
    return seconds


def ratios(seconds: Rounds, one: str, other: str) -> list[float]:
    """Compare two variants within each round."""
    return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]


def difference(subject: Subject) -> float:
    """Tell how far Glowmap's heatmap and the recipe's lie apart: a comparison of costs means nothing if the maps differ."""
    return float((glowmap_grad_cam(subject)() - recipe(subject)()).abs().max())


def peak_in_a_fresh_process(case: str, variant: str, threads: int, repeats: int) -> float | None:
    """Measure in processes of their own; None where the system does not tell."""
    # Large tensors go back to the system as soon as they are freed, so that what counts is what is alive, and not what the
    # allocator happens to hoard.
    lean = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "peak", case, variant, "--threads", str(threads)]
    told = [
        subprocess.run(command, env=os.environ | lean, check=True, capture_output=True, text=True).stdout.strip()
        for _ in range(repeats)
    ]
    return median(float(peak) for peak in told) if all(told) else None


def peak(subject: Subject, variant: str) -> float:
    """Measure by how many MB one run lifts the process above the loaded model, at its highest."""
    images = subject.images
    # A first run on small images, so that the libraries' own code, which must be loaded once, is not counted.
    subject.ask(images[:, :, :64, :64])
    VARIANTS[variant](subject)()
    subject.model.zero_grad()
    subject.ask(images)
    action = VARIANTS[variant](subject)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to where the process stands
    before = _megabytes("VmRSS")
    action()
    return _megabytes("VmHWM") - before


def _megabytes(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


@dataclass(frozen=True)
class Sheet:
    """A table, for the terminal and for Markdown; the first column is text, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def on_terminal(self) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def in_markdown(self) -> str:
        ruler = ("---", *("---:" for _ in self.columns[1:]))
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, ruler, *self.rows)]
        return "\n".join((f"## {self.title}", "", *lines))


def costs(case: str, seconds: Rounds, peaks: dict[str, float | None]) -> Sheet:
    """Lay out what each variant of a case costs, beside the bare forward pass."""
    rows = []
    for name in seconds:
        memory, least = peaks.get(name), peaks.get(BARE)
        against = "1" if name == BARE else f"{median(ratios(seconds, name, BARE)):.2f}"
        megabytes = f"{memory:.0f} MB" if memory is not None else ""
        heavier = f"{memory / least:.2f}" if memory is not None and least else ""
        rows.append((name, f"{median(seconds[name]) * 1000:.0f} ms", against, megabytes, heavier))
    return Sheet(f"{case}, {len(seconds[BARE])} rounds", ("", "time", "x bare", "peak memory", "x bare"), rows)


def aims(case: str, seconds: Rounds, peaks: dict[str, float | None]) -> list[tuple[str, ...]]:
    """Hold the ratios against what was aimed at."""
    if IDEAL in seconds:
        rows = [_aim(f"{case}: time, Glowmap / ideal", ratios(seconds, GLOWMAP, IDEAL), at_most=1.10)]
    else:
        within = 1.15 if case == "ResNet-50, 1 image" else None
        rows = [_aim(f"{case}: time, Glowmap / bare", ratios(seconds, GLOWMAP, BARE), at_most=within)]
    rows.append(_aim(f"{case}: time, recipe / Glowmap", ratios(seconds, RECIPE, GLOWMAP), at_least=2.5))
    memory, least = peaks.get(GLOWMAP), peaks.get(BARE)
    if memory is not None and least:
        within = 1.3 if IDEAL not in seconds else None
        rows.append(_aim(f"{case}: peak memory, Glowmap / bare", [memory / least], at_most=within))
    return rows


def _aim(
    what: str, figures: list[float], *, at_most: float | None = None, at_least: float | None = None
) -> tuple[str, ...]:
    figure = median(figures)
    spread = "{0:.2f} to {2:.2f}".format(*quantiles(figures, n=4)) if len(figures) > 2 else ""
    if at_most is not None:
        return what, f"{figure:.2f}", spread, f"≤ {at_most:.2f}", "reached" if figure <= at_most else "missed"
    if at_least is not None:
        return what, f"{figure:.2f}", spread, f"≥ {at_least:.2f}", "reached" if figure >= at_least else "missed"
    return what, f"{figure:.2f}", spread, "", ""


def circumstances(threads: int) -> str:
    """Say on what the figures were measured."""
    information = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", information.read_text()) if information.exists() else None
    load = f", load average at the start {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{datetime.date.today()}, glowmap {glowmap.__version__}, torch {torch.__version__}, {threads} thread(s) "
        f"of {model[1] if model else platform.processor() or platform.machine()} ({os.cpu_count()} cores{load})"
    )


EXPLAINED = """\
Bare forward: the model under `torch.no_grad()`. Glowmap: the whole call `explainer(images, target=...)` and `.heatmap`.
Plain recipe: a forward and a full backward hook, `backward()`, pooled gradients, ReLU, resizing, min-max. Ideal: the bare
forward plus the backward pass of the head alone. Times are medians; ratios are medians of the ratios within each round,
with the middle half of them as the spread. Peak memory is what one run adds to the process that holds the loaded model.
Weights are random. Glowmap's heatmaps and the recipe's differ by at most {difference:.1g}."""

ROUNDS_HELP = "Rounds on the clock for ResNet-50 with one image; the slower cases get about a third, at least 3."
THREADS_HELP = (
    "Threads of torch. With more than one on a shared machine OpenMP's waiting threads spin for a core that another "
    "process holds, and times mean nothing."
)

Threads = Annotated[int, typer.Option(min=1, help=THREADS_HELP)]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    rounds: Annotated[int, typer.Option(min=1, help=ROUNDS_HELP)] = 15,
    threads: Threads = 1,
    repeats: Annotated[int, typer.Option(min=0, help="Processes for each peak of memory; 0 skips memory.")] = 1,
    write: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file, too.")] = None,
) -> None:
    """Measure what Glowmap's Grad-CAM costs beside a bare forward pass and the plain recipe."""
    if context.invoked_subcommand:
        return
    torch.set_num_threads(threads)
    console, sheets, held, apart = Console(), [], [], 0.0
    about = circumstances(threads)
    for name, case in CASES.items():
        with console.status(f"{name}: time"):
            subject = Subject(case)
            apart = max(apart, difference(subject))
            seconds = timed(subject, max(3, round(rounds * case.share)))
        with console.status(f"{name}: memory"):
            measured = [variant for variant in seconds if variant != IDEAL and repeats]
            peaks = {variant: peak_in_a_fresh_process(name, variant, threads, repeats) for variant in measured}
        sheets.append(costs(name, seconds, peaks))
        held += aims(name, seconds, peaks)
        console.print(sheets[-1].on_terminal())
    sheets.append(Sheet("Aims", ("", "measured", "spread", "aim", ""), held))
    console.print(sheets[-1].on_terminal(), EXPLAINED.format(difference=apart), about, sep="\n", highlight=False)
    if write:
        command = f"    python benchmarks/cost.py {shlex.join(sys.argv[1:])}".rstrip()
        tables = [sheet.in_markdown() for sheet in sheets]
        write.write_text(
            "\n\n".join(("# What Grad-CAM costs", about, command, *tables, EXPLAINED.format(difference=apart))) + "\n"
        )


@app.command("peak", hidden=True)
def peak_command(case: str, variant: str, threads: Threads = 1) -> None:
    """Print the peak of one case and variant in MB, or nothing where the system does not tell."""
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        print(peak(Subject(CASES[case]), variant))


if __name__ == "__main__":
    app()
