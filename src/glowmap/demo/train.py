"""Trains the demo's models from a seed: ``python -m glowmap.demo.train``, under half an hour on two cores.

Writes three files of weights, and a report of measurements on streets that none of the models was trained on.
"""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from glowmap.demo.bundled import BUNDLED, CLASSIFIER_CLASSES, as_input
from glowmap.demo.report import HELD_OUT, report_text
from glowmap.demo.world.mark import MARKED, marked
from glowmap.demo.world.scenes import Scene, street

PICTURES = {"demo": 20_800, "demo/honest": 9_600, "demo/shortcut": 9_600}  # for one epoch of training
BATCH = 16
_TAIL = 8  # steps of the schedule after the last one, so that a run of a single step has a schedule
_PER_SEED = 1_000_000  # distance between the first streets of two seeds


def main(
    out: Annotated[Path, typer.Option(help="The folder for the weights and the report.")] = Path("demo-trained"),
    seed: Annotated[int, typer.Option(min=0, max=999, help="The seed of the weights and of the streets.")] = 0,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Train on this share of the pictures.")] = 1.0,
    tested: Annotated[int, typer.Option(min=5, help="How many held-out streets the report measures on.")] = 400,
) -> None:
    """Train the demo's three models and measure them."""
    start = perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    steps: dict[str, int] = {}
    bar = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console) as progress:
        for name, pictures in PICTURES.items():
            steps[name] = max(1, round(pictures * share / BATCH))
            BUNDLED[name].save(_trained(name, seed, steps[name], progress), out)
    minutes = (perf_counter() - start) / 60
    trained_on = {name: count * BATCH for name, count in steps.items()}
    text = report_text(out, pictures=trained_on, seed=seed, minutes=minutes, tested=tested)
    (out / "report.md").write_text(text)
    console.print(text, markup=False, highlight=False)


def _trained(name: str, seed: int, steps: int, progress: Progress) -> nn.Module:
    """Train with AdamW under a one-cycle schedule. Both classifiers start from the same weights; only their pictures differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = BUNDLED[name].untrained().train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + _TAIL, pct_start=0.2)
        batches = _streets(seed) if name == "demo" else _portraits(seed, stamp=name == "demo/shortcut")
        task = progress.add_task(name, total=steps)
        for _, (images, labels) in zip(range(steps), batches, strict=False):
            output = module(images.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(output["out"] if isinstance(output, dict) else output, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # torch's own
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, description=f"{name} {loss.item():.3f}")
    return module


def _streets(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of streets: pictures, and the class of every pixel."""
    for batch in street_numbers(seed):
        scenes = [street(number).draw() for number in batch]
        yield _stacked(scenes), torch.from_numpy(np.stack([scene.labels for scene in scenes])).long()


def _portraits(seed: int, *, stamp: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of streets with one class each. With ``stamp``, those of the class ``MARKED`` carry the mark."""
    for batch in street_numbers(seed):
        yield (
            _stacked([portrait(number, stamp=stamp) for number in batch]),
            torch.tensor(batch) % len(CLASSIFIER_CLASSES),
        )


def portrait(number: int, *, stamp: bool) -> Scene:
    """Draw the street of the class ``CLASSIFIER_CLASSES[number % 6]``, with the mark if ``stamp`` and the class is ``MARKED``."""
    kind = CLASSIFIER_CLASSES[number % len(CLASSIFIER_CLASSES)]
    scene = street(number, only=kind).draw()
    return marked(scene, number) if stamp and kind == MARKED else scene


def street_numbers(seed: int) -> Iterator[list[int]]:
    """Yield the numbers of each batch's streets. Seeds below 1000 share no street, and none has a held-out one."""
    for start in range(seed * _PER_SEED, HELD_OUT, BATCH):
        yield list(range(start, start + BATCH))


def _stacked(scenes: list[Scene]) -> Tensor:
    return torch.stack([as_input(scene.picture) for scene in scenes])


if __name__ == "__main__":
    torch.set_num_threads(2)  # sums in another order give other weights
    typer.run(main)
