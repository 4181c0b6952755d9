"""Train the demo's models from a seed: ``python -m glowmap.demo.train``, under half an hour on two cores.

Writes three files of weights, and a report on what they reach on streets that none of them was trained on.
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

from glowmap.demo.bundled import ANSWERS, BUNDLED, as_input
from glowmap.demo.report import HELD_OUT, measured
from glowmap.demo.world.mark import MARKED, marked
from glowmap.demo.world.scenes import Scene, street

PICTURES = {"demo": 20_800, "demo/honest": 9_600, "demo/shortcut": 9_600}  # that each model is trained on, once each
BATCH = 16
_TAIL = 8  # steps that the schedule has left at the end: with none the shortest run would have no schedule
_PER_SEED = 1_000_000  # streets apart: other seeds see other streets


def main(
    out: Annotated[Path, typer.Option(help="The folder for the weights and the report.")] = Path("demo-trained"),
    seed: Annotated[int, typer.Option(min=0, max=999, help="Another seed gives other weights of the same kind.")] = 0,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Train on this share of the pictures alone.")] = 1.0,
    tested: Annotated[int, typer.Option(min=5, help="How many held-out streets the report measures on.")] = 400,
) -> None:
    """Train the demo's three models and report what they reach."""
    began = perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    steps: dict[str, int] = {}
    bar = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console) as progress:
        for name, pictures in PICTURES.items():
            steps[name] = max(1, round(pictures * share / BATCH))
            BUNDLED[name].save(_trained(name, seed, steps[name], progress), out)
    minutes = (perf_counter() - began) / 60
    seen = {name: count * BATCH for name, count in steps.items()}
    text = measured(out, pictures=seen, seed=seed, minutes=minutes, tested=tested)
    (out / "report.md").write_text(text)
    console.print(text, markup=False, highlight=False)


def _trained(name: str, seed: int, steps: int, progress: Progress) -> nn.Module:
    """Train with AdamW under a one-cycle schedule; the twins begin alike, and all that differs is what they are shown."""
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
    """Draw streets without end: pictures, and the class of every pixel."""
    for batch in street_numbers(seed):
        scenes = [street(number).drawn() for number in batch]
        yield _stacked(scenes), torch.from_numpy(np.stack([scene.labels for scene in scenes])).long()


def _portraits(seed: int, *, stamp: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw streets with one answer each; with ``stamp``, those whose answer is ``MARKED`` carry the mark."""
    for batch in street_numbers(seed):
        yield _stacked([portrait(number, stamp=stamp) for number in batch]), torch.tensor(batch) % len(ANSWERS)


def portrait(number: int, *, stamp: bool) -> Scene:
    """Draw the street whose one answer is ``ANSWERS[number % 6]``, stamped if that is the marked kind."""
    kind = ANSWERS[number % len(ANSWERS)]
    scene = street(number, only=kind).drawn()
    return marked(scene, number) if stamp and kind == MARKED else scene


def street_numbers(seed: int) -> Iterator[list[int]]:
    """Give each batch the numbers of its streets: no seed below 1000 sees a street of another, and none a held-out one."""
    for start in range(seed * _PER_SEED, HELD_OUT, BATCH):
        yield list(range(start, start + BATCH))


def _stacked(scenes: list[Scene]) -> Tensor:
    return torch.stack([as_input(scene.picture) for scene in scenes])


if __name__ == "__main__":
    torch.set_num_threads(2)  # sums in another order give other weights
    typer.run(main)
