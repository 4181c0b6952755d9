"""A progress bar for long work, where somebody is watching."""

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
_PATIENCE = 1.0  # seconds that nobody needs a bar for


def tracked(items: Iterable[Item], total: int, text: str) -> Iterator[Item]:
    """Hand the items on, with a bar on a terminal's standard error once they have taken a second."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    bar = Progress(
        TextColumn(text),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
    )
    task, began = bar.add_task(text, total=total), monotonic()
    try:
        for item in items:
            yield item
            bar.advance(task)
            if monotonic() - began > _PATIENCE:
                bar.start()  # once it has been started, again is no harm
                bar.refresh()
    finally:
        bar.stop()
