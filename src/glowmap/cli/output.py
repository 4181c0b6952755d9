"""What the command line tells a person: lines, tables, and pictures where a terminal can show them."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from glowmap.cli.demonstration import Cars, Layers, Portrait
    from glowmap.explanation.explanation import Explanation, Explanations
    from glowmap.inputs import Shown
    from glowmap.layers import Choice, Surveyed
    from glowmap.methods import Method
console = Console(soft_wrap=True)
_MOST_FOUND = 10  # detections that are listed


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

    from glowmap.evidence import method_cost

    console.print(f"[bold]{method.name}[/]: {escape(method_cost(method))}; for {escape(method.use)}", highlight=False)
    console.print(escape(inspect.getdoc(method.function) or ""), highlight=False)
    console.print(f"needs {', '.join(method.needs)}; from {escape(method.paper)}", highlight=False)
    for knob, default in method.parameters.items():
        console.print(f"  --set {knob}={default}", highlight=False)


def tell(explanations: "Explanations", written: Path) -> None:
    """Say what was found, what was explained, at which layer, with which score and heat, and what to mind."""
    from glowmap.explanation.tiles import format_number
    from glowmap.shapes import crossed

    _tell_found(explanations[0])
    whole = explanations[0].target_names[0]  # a sentence, maybe, whose words come after it
    for explanation in explanations:
        asked, grid = explanation.target_names[0].removesuffix(f" in {whole}"), crossed(explanation.grid)
        low, high = explanation.limits()
        console.print(
            f"{escape(asked)}: {explanation.method} at [bold]{escape(explanation.layer)}[/] ({grid}), "
            f"score {format_number(float(explanation.scores[0]))}, heat {format_number(low)} to {format_number(high)}",
            highlight=False,
        )
    for caution in explanations.cautions:
        console.print(f"[yellow]note:[/] {escape(caution)}", highlight=False)
    console.print(f"wrote [bold]{escape(str(written))}[/]", highlight=False)


def _tell_found(one: "Explanation") -> None:
    """List what a detector found, so that a person can say which of it is meant."""
    if one.prediction is None or one.prediction.boxes is None:
        return
    (boxes,) = one.prediction.boxes
    if not boxes:
        console.print("found nothing", highlight=False)
        return
    more = f", the surest {_MOST_FOUND} of them here" if len(boxes) > _MOST_FOUND else ""
    console.print(f"found {len(boxes)}{more}; --box NUMBER asks about one", highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("box", "class", "score", "left", "top", "right", "bottom"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for number, box in enumerate(boxes[:_MOST_FOUND]):
        corners = _in_pixels(one.pictures[0], box.corners)
        table.add_row(str(number), escape(box.name), f"{box.score:.2f}", *(f"{corner:.0f}" for corner in corners))
    console.print(table)


def _in_pixels(shown: "Shown", shares: "Sequence[float]") -> list[float]:
    """Lay a box of what the model saw over the picture as it was given."""
    left, top, right, bottom = getattr(shown, "seen", (0, 0, 1, 1))
    across, down = right - left, bottom - top
    return [
        low + share * length for share, low, length in zip(shares, (left, top) * 2, (across, down) * 2, strict=True)
    ]


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


def tell_cars(found: "Cars") -> None:
    """Say on which car the heat lies when one of two is asked about."""
    method = found.explanations[0].method
    console.print(f"\n[bold]Which car?[/] One of two is asked about, by a point on it. ({method})", highlight=False)
    table = Table("asked about", box=None, header_style="bold", pad_edge=False)
    for name in found.names:
        table.add_column(f"heat on the {name} car", justify="right")
    for explanation, shares in zip(found.explanations, found.shares, strict=True):
        table.add_row(explanation.target_names[0], *(f"{share:.1%}" for share in shares))
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
            answer = explanation.target_names[0]
            answered = answer if answer == portrait.kind else f"[red]{answer}[/]"
            heat = [
                text for share in portrait.shares(explanation) for text in (f"{share.value:.1%}", f"{share.lift:.1f}")
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
