"""The output of the command line: lines, tables, and pictures where a terminal can show them."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from glowmap.cli.demonstration import HeatByCar, HeatByLayer, MarkedPicture
    from glowmap.explanation.explanation import Explanation, Explanations
    from glowmap.inputs import Drawable
    from glowmap.layers import Choice, Surveyed
    from glowmap.methods import Method
    from glowmap.registry import Registry
console = Console(soft_wrap=True)
_MOST_DETECTIONS = 10  # that are listed
_WIDE = 150  # columns of a terminal in which whole tables can be read


def print_choice(choice: "Choice") -> None:
    """Print the layer that is explained by default, why, and the runners-up; in a wide terminal with their layouts."""
    from glowmap.shapes import crossed

    is_wide = console.width >= _WIDE
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (
        ("layer", "kind", "channels", "layout", "gradient at", "why, or why not")
        if is_wide
        else ("layer", "kind", "channels", "grid", "why, or why not")
    ):
        table.add_column(column, overflow="fold", no_wrap=column in ("layer", "grid"))
    for candidate in (choice, *choice.runners_up):
        cells = [candidate.name, candidate.kind, str(candidate.channels), crossed(candidate.grid), candidate.reason]
        if is_wide:
            cells[3:4] = str(candidate.layout), candidate.covered
        table.add_row(*map(escape, cells), style="bold" if candidate is choice else "dim")
    console.print("explained by default: the first of these layers; the others are runners-up")
    console.print(table, soft_wrap=False)


def print_survey(rows: "Sequence[Surveyed]") -> None:
    """Print a table of layers."""
    from glowmap.shapes import crossed

    table = Table("layer", "kind", "channels", "grid", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(escape(row.name), escape(row.kind), str(row.channels), crossed(row.grid))
    console.print(table)


def print_methods(methods: "Registry[Method]") -> None:
    """Print a table of the methods: all about them in a wide terminal, else cost and use."""
    from glowmap.evidence import method_cost

    is_wide = console.width >= _WIDE
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in (
        ("cost", "what it does", "evidence", "when to use it", "paper") if is_wide else ("cost", "when to use it")
    ):
        table.add_column(column, overflow="fold")
    for name, method in methods.items():
        cells = [method_cost(method), method.use]
        if is_wide:
            cells = [method_cost(method), method.summary, ", ".join(method.needs), method.use, method.paper]
        table.add_row(name, *map(escape, cells))
    console.print(table, soft_wrap=False)
    if not is_wide:
        console.print("[dim]`glowmap methods NAME` describes a method: its formula, parameters and paper[/]")


def print_method(method: "Method") -> None:
    """Print a method's cost and use, its description, its evidence, its paper and its parameters."""
    import inspect

    from glowmap.evidence import method_cost

    console.print(f"[bold]{method.name}[/]\n\n{escape(inspect.getdoc(method.function) or '')}\n", highlight=False)
    lines = {
        "use": method.use,
        "cost": method_cost(method),
        "evidence": ", ".join(method.needs),
        "paper": method.paper,
        "parameters": " ".join(f"--set {name}={default}" for name, default in method.parameters.items()),
    }
    for name, line in lines.items():
        if line:
            console.print(f"[bold]{name:<10}[/] {escape(line)}", highlight=False)


def print_explanations(explanations: "Explanations", written: Path) -> None:
    """Print the detections, a line for each explanation (target, method, layer, score, heat), the cautions and the file."""
    from glowmap.explanation.tiles import format_number
    from glowmap.shapes import crossed

    _print_detections(explanations[0])
    text = explanations[0].target_names[0]  # the explanations of its words may follow
    for explanation in explanations:
        name, grid = explanation.target_names[0].removesuffix(f" in {text}"), crossed(explanation.grid)
        low, high = explanation.limits()
        console.print(
            f"{escape(name)}: {explanation.method} at [bold]{escape(explanation.layer)}[/] ({grid}), "
            f"score {format_number(float(explanation.scores[0]))}, heat {format_number(low)} to {format_number(high)}",
            highlight=False,
        )
    for caution in explanations.cautions:
        level = getattr(caution, "level", "caution")  # files hold plain sentences
        console.print(f"[yellow]{level}:[/] {escape(caution)}", highlight=False)
    console.print(f"wrote [bold]{escape(str(written))}[/]", highlight=False)


def _print_detections(explanation: "Explanation") -> None:
    """Print a table of a detector's boxes with the numbers that ``--box`` takes."""
    if explanation.prediction is None or explanation.prediction.boxes is None:
        return
    (boxes,) = explanation.prediction.boxes
    if not boxes:
        console.print("no detections", highlight=False)
        return
    shown = f", of which the surest {_MOST_DETECTIONS} are listed" if len(boxes) > _MOST_DETECTIONS else ""
    console.print(f"{len(boxes)} detection{'s' * (len(boxes) > 1)}{shown}; --box NUMBER explains one", highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("box", "class", "score", "left", "top", "right", "bottom"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for number, box in enumerate(boxes[:_MOST_DETECTIONS]):
        corners = _in_pixels(explanation.pictures[0], box.corners)
        table.add_row(str(number), escape(box.name), f"{box.score:.2f}", *(f"{corner:.0f}" for corner in corners))
    console.print(table)


def _in_pixels(picture: "Drawable", shares: "Sequence[float]") -> list[float]:
    """Convert a box from shares of the visible part to pixels of the picture."""
    left, top, right, bottom = getattr(picture, "visible", (0, 0, 1, 1))
    across, down = right - left, bottom - top
    return [
        low + share * length for share, low, length in zip(shares, (left, top) * 2, (across, down) * 2, strict=True)
    ]


def print_heat_by_layer(heat: "HeatByLayer") -> None:
    """Print the share of the heat on cars, layer by layer."""
    from glowmap.shapes import crossed

    method = heat.explanations[0].method
    console.print(f"[bold]Where does the segmentation model find the evidence for car?[/] ({method})", highlight=False)
    table = Table("layer", "grid", box=None, header_style="bold", pad_edge=False)
    table.add_column("heat on cars", justify="right")
    for explanation, share in zip(heat.explanations, heat.shares, strict=True):
        table.add_row(explanation.layer, crossed(explanation.grid), f"{share:.1%}")
    table.add_row("[dim]chance: the share of the picture that cars cover[/]", "", f"[dim]{heat.chance:.1%}[/]")
    console.print(table)


def print_heat_by_car(heat: "HeatByCar") -> None:
    """Print the share of the heat on each of two cars, for a target at either of them."""
    method = heat.explanations[0].method
    console.print(
        f"\n[bold]Which car?[/] The target is one of two, chosen by a point on it. ({method})", highlight=False
    )
    table = Table("target", box=None, header_style="bold", pad_edge=False)
    for name in heat.names:
        table.add_column(f"heat on the {name} car", justify="right")
    for explanation, shares in zip(heat.explanations, heat.shares, strict=True):
        table.add_row(explanation.target_names[0], *(f"{share:.1%}" for share in shares))
    console.print(table)


def print_marked_pictures(pictures: "Sequence[MarkedPicture]") -> None:
    """Print the shares of the heat on the mark and on the object, for both classifiers."""
    console.print(
        "\n[bold]What do two classifiers look at?[/] One learned a shortcut: a mark in the corner.", highlight=False
    )
    table = Table("picture", "model", "answer", box=None, header_style="bold", pad_edge=False)
    for column in ("heat on mark", "x chance", "on object", "x chance"):
        table.add_column(column, justify="right")
    for marked in pictures:
        for name, explanation in (("honest", marked.honest), ("shortcut", marked.shortcut)):
            answer = explanation.target_names[0]
            answered = answer if answer == marked.kind else f"[red]{answer}[/]"
            heat = [
                text for share in marked.shares(explanation) for text in (f"{share.value:.1%}", f"{share.lift:.1f}")
            ]
            table.add_row(f"marked {marked.kind}", name, answered, *heat)
    console.print(table)


def show_panel(panel: "Image", rows: "Sequence[Sequence[Image]]", *, wanted: bool) -> None:
    """Draw a panel in a terminal with Kitty's protocol or Sixel; in others its ``rows`` of pictures in coloured half cells."""
    if not wanted or not console.is_terminal:
        return
    try:
        from textual_image import renderable  # its import queries the terminal
    except ImportError:
        hint = 'to see the pictures in the terminal: pip install "glowmap[terminal]"'
        console.print(f"[dim]{escape(hint)}[/]", highlight=False)
        return
    if renderable.Image in (renderable.SixelImage, renderable.TGPImage):
        console.print(renderable.Image(panel, width="100%", height="auto"))
        return
    for pictures in rows:  # the panel's letters cannot be read in so few cells
        row = Table.grid(*(Column(ratio=1) for _ in pictures), padding=(0, 1), expand=True)
        row.add_row(*(renderable.Image(picture, width="100%", height="auto") for picture in pictures))
        console.print(row)
