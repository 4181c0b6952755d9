"""A progress bar for long work in a terminal."""

from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
_DELAY = 1.0  # seconds before the bar is shown


def tracked(items: Iterable[Item], total: int, text: str) -> Iterator[Item]:
    """Yield the items; after a second, show a bar on standard error, if that is a terminal."""
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
    task, start = bar.add_task(text, total=total), monotonic()
    try:
        for item in items:
            yield item
            bar.advance(task)
            if monotonic() - start > _DELAY:
                bar.start()  # has no effect on a bar that was started
                bar.refresh()
    finally:
        bar.stop()
