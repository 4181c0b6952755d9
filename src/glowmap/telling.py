"""What the command line tells a person: lines, tables, and pictures where a terminal can show them."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from glowmap import Explanations
    from glowmap.layers import Choice, Surveyed
    from glowmap.methods import Method
    from glowmap.tour import Layers, Portrait

console = Console(soft_wrap=True)


def tell_choice(choice: "Choice") -> None:
    """Say which layer is explained where none is named, why, and what else would have done."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("layer", "kind", "channels", "laid out", "gradient at", "why, or why not"):
        table.add_column(column, overflow="fold", no_wrap=column == "layer")
    for one in (choice, *choice.runners_up):
        style = "bold" if one is choice else "dim"
        cells = (one.name, one.kind, str(one.channels), str(one.layout), one.covered, one.reason)
        table.add_row(*map(escape, cells), style=style)
    console.print("where none is named, the first of these is explained; the others are runners-up")
    console.print(table, soft_wrap=False)


def tell_survey(rows: "Sequence[Surveyed]") -> None:
    """List layers worth naming."""
    from glowmap.shapes import crossed

    table = Table("layer", "kind", "channels", "grid", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(escape(row.name), escape(row.kind), str(row.channels), crossed(row.grid))
    console.print(table)


def tell_method(method: "Method") -> None:
    """Say all about one method."""
    import inspect

    console.print(f"[bold]{method.name}[/]: {escape(method.price)}; for {escape(method.use)}", highlight=False)
    console.print(escape(inspect.getdoc(method.function) or ""), highlight=False)
    console.print(f"needs {', '.join(method.needs)}; from {escape(method.paper)}", highlight=False)
    for knob, default in method.knobs.items():
        console.print(f"  --set {knob}={default}", highlight=False)


def tell(explanations: "Explanations", written: Path) -> None:
    """Say what was explained, at which layer, with which score and heat, and what to mind."""
    from glowmap.explanation import spelled
    from glowmap.shapes import crossed

    for explanation in explanations:
        grid = crossed(explanation.grid)
        low, high = explanation.scale()
        console.print(
            f"{escape(explanation.targets[0])}: {explanation.method} at [bold]{escape(explanation.layer)}[/] ({grid}), "
            f"score {spelled(float(explanation.scores[0]))}, heat {spelled(low)} to {spelled(high)}",
            highlight=False,
        )
    for note in explanations.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
    console.print(f"wrote [bold]{escape(str(written))}[/]", highlight=False)


def tell_layers(found: "Layers") -> None:
    """Say how the heat gathers on cars, layer by layer."""
    from glowmap.shapes import crossed

    method = found.explanations[0].method
    console.print(f"[bold]Where does the segmentation model find the evidence for car?[/] ({method})", highlight=False)
    table = Table("layer", "grid", box=None, header_style="bold", pad_edge=False)
    table.add_column("heat on cars", justify="right")
    for explanation, share in zip(found.explanations, found.shares, strict=True):
        table.add_row(explanation.layer, crossed(explanation.grid), f"{share:.1%}")
    table.add_row("[dim]chance: the part that cars cover[/]", "", f"[dim]{found.chance:.1%}[/]")
    console.print(table)


def tell_portraits(found: "Sequence[Portrait]") -> None:
    """Say what the two classifiers of the demo lean on."""
    console.print(
        "\n[bold]What do two classifiers lean on?[/] One learned a shortcut: a mark in the corner.", highlight=False
    )
    table = Table("picture", "model", "answer", box=None, header_style="bold", pad_edge=False)
    for column in ("heat on the mark", "x chance", "on the object", "x chance"):
        table.add_column(column, justify="right")
    for portrait in found:
        for name, explanation in (("honest", portrait.honest), ("shortcut", portrait.shortcut)):
            answer = explanation.targets[0]
            answered = answer if answer == portrait.kind else f"[red]{answer}[/]"
            heat = [
                f for share, chance in portrait.shares(explanation) for f in (f"{share:.1%}", f"{share / chance:.1f}")
            ]
            table.add_row(f"marked {portrait.kind}", name, answered, *heat)
    console.print(table)


def draw_here(panel: "Image", rows: "Sequence[Sequence[Image]]", *, wanted: bool) -> None:
    """Draw a panel in a terminal that can (Kitty's protocol, Sixel), else its bare pictures in coloured half cells."""
    if not wanted or not console.is_terminal:
        return
    try:
        from textual_image import renderable  # asks the terminal what it can, so not before now
    except ImportError:
        hint = 'to see the pictures in the terminal: pip install "glowmap[terminal]"'
        console.print(f"[dim]{escape(hint)}[/]", highlight=False)
        return
    if renderable.Image in (renderable.SixelImage, renderable.TGPImage):
        console.print(renderable.Image(panel, width="100%", height="auto"))
        return
    for pictures in rows:  # letters would be lost in so few cells
        row = Table.grid(*(Column(ratio=1) for _ in pictures), padding=(0, 1), expand=True)
        row.add_row(*(renderable.Image(picture, width="100%", height="auto") for picture in pictures))
        console.print(row)
