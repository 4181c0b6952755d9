"""Show what Grad-CAM costs: Glowmap beside a bare forward pass and beside the plain recipe of hooks and ``backward()``.

All figures are of one run on one machine, and nothing is asserted. The variants take turns round by round, so that noise
hits them alike, and ratios are taken within a round. Peak memory is measured in a fresh process for each case and variant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from statistics import median
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from measuring import (
    AIMS,
    Action,
    Measured,
    Repeats,
    Threads,
    Write,
    aim,
    circumstances,
    lifted,
    peaks_in_fresh_processes,
    table,
    tells_memory,
    timed,
)
from rich.console import Console
from rich.markdown import Markdown
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.segmentation import deeplabv3_resnet50

import glowmap


@dataclass(frozen=True)
class Case:
    """A model, what is asked of it, and how often the clock runs, as a share of ``--rounds``."""

    build: Callable[..., nn.Module]
    layer: str
    category: int  # one whose map is not blank with these random weights
    shape: tuple[int, ...]
    share: float = 1.0


CASES = {
    "ResNet-50, 1 image": Case(resnet50, "layer4", 11, (1, 3, 224, 224)),
    "ResNet-50, 8 images": Case(resnet50, "layer4", 11, (8, 3, 224, 224), share=0.35),
    "DeepLabV3, 1 image": Case(deeplabv3_resnet50, "backbone.layer4", 7, (1, 3, 375, 500), share=0.35),
}


class Subject:
    """A case built: the model with random weights, its input, and the same question in Glowmap's words and in plain ones."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.layer, self.category = case.layer, case.category
        self.dense = case.build is deeplabv3_resnet50
        self.model = case.build(weights=None, **({"weights_backbone": None} if self.dense else {})).eval()
        self.ask(torch.rand(case.shape))

    def ask(self, images: Tensor) -> None:
        """Put other images in, of any size; the mask of a dense model covers the middle ninth of them."""
        self.images = images
        rows, columns = images.shape[2:]
        self.mask = torch.zeros(rows, columns, dtype=torch.bool)
        self.mask[rows // 3 : rows * 2 // 3, columns // 3 : columns * 2 // 3] = True
        self.target: Any = glowmap.targets.Pixels(self.category, self.mask) if self.dense else self.category

    def score(self, output: Any) -> Tensor:
        """Sum the class's logits, over the images or over the mask."""
        logits: Tensor = output["out"][:, self.category] * self.mask if self.dense else output[:, self.category]
        return logits.sum()


def bare(subject: Subject) -> Action:
    """Run the forward pass alone, without autograd."""
    return torch.no_grad()(lambda: subject.model(subject.images))


def glowmap_grad_cam(subject: Subject) -> Action:
    """Ask Glowmap as its users do, up to the heatmap."""
    explainer: Any = glowmap.Explainer(subject.model, layer=subject.layer)
    return lambda: explainer(subject.images, target=subject.target).heatmap


def recipe(subject: Subject) -> Action:
    """Follow the recipe that everyone starts from: two hooks, ``backward()`` through the whole model, weights included."""
    layer, kept = subject.model.get_submodule(subject.layer), dict[str, Tensor]()

    def run() -> Tensor:
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output: kept.update(activations=output)),
            layer.register_full_backward_hook(lambda _module, _inner, outer: kept.update(gradients=next(iter(outer)))),
        ]
        subject.model.zero_grad()
        torch.autograd.backward(subject.score(subject.model(subject.images)))  # score.backward(), with types
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
        maps = model.backbone(subject.images)["out"].requires_grad_()
    # Frozen while the graph is built, and given back at once: the other variants need the model in its normal state.
    head = model.classifier.requires_grad_(False)
    logits = F.interpolate(head(maps), subject.images.shape[2:], mode="bilinear", align_corners=False)
    head.requires_grad_(True)
    score = subject.score({"out": logits})
    return lambda: torch.autograd.grad(score, maps)


BARE, GLOWMAP, RECIPE, IDEAL = "bare forward", "Glowmap", "plain recipe", "ideal"
VARIANTS = {BARE: bare, GLOWMAP: glowmap_grad_cam, RECIPE: recipe, IDEAL: head_backward}


def in_turns(subject: Subject, rounds: int) -> dict[str, list[float]]:
    """Time the variants that the case has; the ideal is the sum of two that were timed."""
    seconds = timed(
        {name: partial(make, subject) for name, make in VARIANTS.items() if subject.dense or name != IDEAL}, rounds
    )
    if IDEAL in seconds:
        seconds[IDEAL] = [sum(pair) for pair in zip(seconds[BARE], seconds[IDEAL], strict=True)]
    return seconds


def difference(subject: Subject) -> float:
    """Tell how far Glowmap's heatmap lies from the recipe's; blank ones agree whatever was computed, and count as inf."""
    ours, theirs = glowmap_grad_cam(subject)(), recipe(subject)()
    return float((ours - theirs).abs().max()) if ours.amax((1, 2)).min() > 0 else inf


def costs(measured: Measured) -> str:
    """Lay out what each variant costs, beside the bare forward pass."""
    rows = [("", "time", "time / bare", "peak memory", "memory / bare")]
    for name, seconds in measured.seconds.items():
        peaks, heavier = measured.peaks[name], measured.heavier(name, BARE)
        memory = (f"{median(peaks):.0f} MB", f"{heavier[0]:.2f}") if heavier else ("skipped", "")
        slower = median(measured.slower(name, BARE))
        rows.append((name, f"{median(seconds) * 1000:.0f} ms", f"{slower:.2f}", *memory))
    return table(rows)


def aims(case: str, measured: Measured) -> str:
    """Hold the ratios against what was aimed at."""
    dense = IDEAL in measured.seconds
    floor, most = (IDEAL, 1.10) if dense else (BARE, 1.15 if CASES[case].shape[0] == 1 else inf)
    rows = [
        AIMS,
        aim(f"time, Glowmap / {floor}", measured.slower(GLOWMAP, floor), most),
        aim("time, plain recipe / Glowmap", measured.slower(RECIPE, GLOWMAP), 2.5, at_least=True),
    ]
    if heavier := measured.heavier(GLOWMAP, floor):
        rows.append(aim(f"memory, Glowmap / {floor}", heavier, inf if dense else 1.3))
    return table(rows)


EXPLAINED = """\
Bare forward: the model under `torch.no_grad()`. Glowmap: the whole call `explainer(images, target=...)` and `.heatmap`.
Plain recipe: a forward and a full backward hook, `backward()`, pooled gradients, ReLU, resizing, min-max. Ideal: the bare
forward and the backward pass of the head alone. Times are medians, ratios of times the medians of the ratios within each
round. Peak memory (on Linux) is what one run adds to the process that holds the loaded model. Weights are random;
Glowmap's heatmaps differ from the recipe's by at most {difference:.1g}."""

Rounds = Annotated[int, typer.Option(min=3, help="Rounds for ResNet-50, 1 image; the slow cases get about a third.")]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context, rounds: Rounds = 15, threads: Threads = 1, repeats: Repeats = 1, write: Write = None
) -> None:
    """Measure what Glowmap's Grad-CAM costs beside a bare forward pass and the plain recipe."""
    if context.invoked_subcommand:
        return
    torch.set_num_threads(threads)
    console, page, apart = Console(), [f"# What Grad-CAM costs\n\n{circumstances(__file__, threads)}"], []
    for name, case in CASES.items():
        console.print(Markdown(page[-1]))
        with console.status(name):
            subject = Subject(case)
            apart.append(difference(subject))
            seconds = in_turns(subject, max(3, round(rounds * case.share)))
            peaks = {
                variant: peaks_in_fresh_processes(__file__, [name, variant], threads, repeats) for variant in seconds
            }
        measured = Measured(seconds, peaks)
        page.append(f"## {name}, {len(seconds[BARE])} rounds\n\n{costs(measured)}\n\n{aims(name, measured)}")
    page.append(EXPLAINED.format(difference=max(apart)))
    console.print(Markdown("\n\n".join(page[-2:])))
    if write:
        write.write_text("\n\n".join(page) + "\n", encoding="utf-8")


@app.command(hidden=True)
def peak(case: str, variant: str, threads: Threads = 1) -> None:
    """Print by how many MB one run lifts this process above the loaded model; nothing where the system does not tell."""
    if not tells_memory():
        return
    torch.set_num_threads(threads)
    subject = Subject(CASES[case])
    images = subject.images
    # A first run on small images, so that the libraries' own code, which must be loaded once, is not counted.
    subject.ask(images[:, :, :64, :64])
    VARIANTS[variant](subject)()
    subject.model.zero_grad()
    subject.ask(images)
    print(lifted(lambda: VARIANTS[variant](subject)()))


if __name__ == "__main__":
    app()
