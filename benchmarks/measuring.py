"""Measure in turns: what the pages of this folder have in common. Nothing here asserts anything.

The variants take turns round by round, so that noise hits them alike, and ratios are taken within a round. Peak memory is
measured in a fresh process for each case and variant.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import glowmap

Action = Callable[[], Any]  # each variant prepares, off the clock, what the clock then runs

THREADS_HELP = "Threads of OpenMP. On a shared machine several wait for each other by spinning, and times mean nothing."
Threads = Annotated[int, typer.Option(min=1, help=THREADS_HELP)]
Repeats = Annotated[int, typer.Option(min=0, help="Processes for each peak of memory (their median); 0 skips memory.")]
Write = Annotated[Path | None, typer.Option(help="Write the page to this Markdown file, too.")]


@dataclass
class Measured:
    """The seconds of each variant, round by round, and its peaks of memory in MB, of which there may be none."""

    seconds: dict[str, list[float]]
    peaks: dict[str, list[float]] = field(default_factory=dict)

    def slower(self, one: str, other: str) -> list[float]:
        """Compare the times of two variants within each round."""
        return [a / b for a, b in zip(self.seconds[one], self.seconds[other], strict=True)]

    def heavier(self, one: str, other: str) -> list[float]:
        """Compare the peaks of two variants: one ratio, or none."""
        above, below = self.peaks.get(one), self.peaks.get(other)
        return [median(above) / median(below)] if above and below else []


def clocked(action: Action) -> float:
    """Count the seconds that an action takes, with no rubbish of another left to collect."""
    gc.collect()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def timed(variants: Mapping[str, Callable[[], Action]], rounds: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Let the variants take turns, after one turn to warm up (or ``warm``), and write down the seconds of each."""
    names, seconds = list(variants), {name: list[float]() for name in variants}
    for number in range(rounds + warm):
        turn = number % len(names)  # who begins changes, so that none always runs in another's wake
        for name in names[turn:] + names[:turn]:
            spent = clocked(variants[name]())
            if number >= warm:
                seconds[name].append(spent)
    return seconds


def peaks_in_fresh_processes(script: str, words: Sequence[str], threads: int, repeats: int) -> list[float]:
    """Measure each time in a process of its own, which runs ``peak`` of a script; none where the system does not tell."""
    # Large tensors go back to the system as soon as they are freed, so that what counts is what is alive, and not what the
    # allocator happens to hoard.
    lean = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, script, "peak", *words, "--threads", str(threads)]
    told = [subprocess.check_output(command, env=os.environ | lean, text=True) for _ in range(repeats)]
    return [float(peak) for peak in told if peak]


def tells_memory() -> bool:
    """Tell whether the system says how high this process's memory rose."""
    return os.access("/proc/self/clear_refs", os.W_OK)


def lifted(action: Action) -> float:
    """Run an action and tell by how many MB it lifts this process above where it stands."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to where the process stands
    before = _megabytes("VmRSS")
    action()
    return _megabytes("VmHWM") - before


def _megabytes(field: str) -> float:
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


class Enough(BaseException):
    """Ends a run whose memory will not rise any more; no Exception, which somebody on the way might catch."""


def stopped(model: nn.Module, enough: int, action: Action) -> None:
    """Run an action until the model has seen so many images."""
    seen = 0

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal seen
        if seen >= enough:
            raise Enough
        seen += len(inputs[0])

    handle = model.register_forward_pre_hook(count)
    with suppress(Enough):
        action()
    handle.remove()


AIMS = ("", "measured", "middle half", "aim", "")


def aim(what: str, ratios: list[float], bound: float, *, at_least: bool = False) -> tuple[str, ...]:
    """Hold ratios against what was aimed at; a bound of inf is none."""
    figure = median(ratios)
    spread = "{0:.2f} to {2:.2f}".format(*quantiles(ratios, n=4)) if len(ratios) > 2 else ""
    if bound == inf:
        return what, f"{figure:.2f}", spread, "", ""
    reached = figure >= bound if at_least else figure <= bound
    return what, f"{figure:.2f}", spread, f"{'≥' if at_least else '≤'} {bound:.2f}", "reached" if reached else "missed"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Lay rows out in Markdown, the first as headings, figures to the right."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join((lines[0], f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *lines[1:]))


def circumstances(script: str, threads: int) -> str:
    """Say on what the figures were measured, and by which command."""
    information = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", information.read_text()) if information.exists() else []
    processor = models[0] if models else platform.processor() or platform.machine()
    command = shlex.join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]])
    return (
        f"{datetime.date.today()}, glowmap {glowmap.__version__}, torch {torch.__version__}, {threads} thread(s) on "
        f"{processor} with {os.cpu_count()} cores: `{command}`"
    )
