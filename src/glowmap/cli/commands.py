"""The command line: strings in, the functions of the library below, a few lines and a file out.

Torch is imported inside the commands, so that ``glowmap --help`` answers at once.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glowmap.cli import options
from glowmap.cli.output import (
    console,
    draw_here,
    tell,
    tell_cars,
    tell_choice,
    tell_layers,
    tell_method,
    tell_portraits,
    tell_survey,
)
from glowmap.cli.parsing import colours, methods_asked, rows_and_columns
from glowmap.cli.targets import TargetOptions
from glowmap.errors import GlowmapError, OutputError

if TYPE_CHECKING:
    from glowmap.models.model import Model
app = typer.Typer(
    name="glowmap",
    help="See where a PyTorch vision model found the evidence for what it said.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)
_ROOM_FOR_ALL = 150  # columns that the whole table of methods takes to be read


@app.command()
def explain(
    picture: options.Picture,
    model: options.Model,
    target: options.Target = None,
    against: options.Against = None,
    finer: options.Finer = False,
    not_: options.Not = False,
    top: options.Top = None,
    at: options.At = None,
    box: options.Box = None,
    above: options.Above = None,
    of: options.Of = None,
    text: options.Text = None,
    prompt: options.Prompt = None,
    word: options.Word = None,
    words: options.Words = False,
    like: options.Like = None,
    value: options.Value = None,
    layer: options.Layer = None,
    method: options.Method = None,
    setting: options.Setting = None,
    smooth: options.Smooth = None,
    fuse: options.Fuse = None,
    out: options.Out = None,
    weights: options.Weights = "default",
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    classes: options.Classes = None,
    device: options.Device = None,
    colormap: options.Colormap = "glow",
    opacity: options.Opacity = 0.65,
    scale: options.Scale = None,
) -> None:
    """Show where in a picture the model finds the evidence for its answer, or for whatever else is asked.

    Where nothing is asked: the likeliest class, the largest of a segmentation, the surest detection, or the model's own words.
    """
    asked = TargetOptions.among(locals())  # whose fields are the options of the question, by the same names
    out = _free(out or Path(f"{picture.stem}-{asked.name}.png"), picture)
    from glowmap.explainer import Explainer
    from glowmap.inputs import read_picture
    from glowmap.render import COLORMAPS, StyleOptions

    # what is misspelt is told before weights are loaded, not after
    methods = methods_asked(method or [], setting or [])
    COLORMAPS[colormap]
    pixels = read_picture(picture)
    loaded = _loaded(model, weights, size=size, mean=mean, std=std, classes=classes, device=device)
    with console.status("explaining"):
        explainer = Explainer(loaded, layer=layer)
        explanations = explainer.explain_all(
            pixels, target=asked.questions(loaded), method=methods, smooth=smooth or []
        )
        explanations = explanations.fused(fuse) if fuse else explanations
        style = StyleOptions(colormap=colormap, opacity=opacity)
        if scale is not None:
            style["scale"] = scale
        written = explanations.save(out, **style)
    tell(explanations, written)


@app.command()
def concepts(
    picture: options.Picture,
    model: options.Model,
    layer: options.Layer = None,
    count: Annotated[int, typer.Option(min=1, help="How many concepts to split the layer into.")] = 4,
    out: options.Out = None,
    weights: options.Weights = "default",
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
    classes: options.Classes = None,
    device: options.Device = None,
) -> None:
    """Show what a layer tells apart in a picture, without a question, and which classes each concept speaks for."""
    out = _free(out or Path(f"{picture.stem}-concepts.png"), picture)
    from glowmap.decomposition import concepts as split
    from glowmap.inputs import read_picture

    pixels = read_picture(picture)
    loaded = _loaded(model, weights, size=size, mean=mean, std=std, classes=classes, device=device)
    with console.status("splitting"):
        found = split(loaded, pixels, layer=layer, count=count)
        written = found.save(out)
    tell(found, written)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the pictures.")] = Path("demo-out"),
    show: Annotated[bool, typer.Option(help="Show the panels here too, if this is a terminal.")] = True,
) -> None:
    """Explain drawn streets with models that come along: a first look, without a network."""
    from glowmap.cli import demonstration as tour
    from glowmap.explanation.files import write_whole

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {out} cannot be made ({error.strerror}); choose another --out") from error
    with console.status("explaining"):
        layers, cars, portraits = tour.layers(), tour.cars(), tour.portraits()
        pictures = {
            "scene": layers.scene.picture,
            "layers": layers.panel(),
            "question": cars.explanations.panel(),
            "shortcut": tour.portraits_panel(portraits),
        }
    written = [
        write_whole(out / f"{name}.png", partial(picture.save, format="PNG")) for name, picture in pictures.items()
    ]
    tell_layers(layers)
    draw_here(pictures["layers"], [layers.pictures()], wanted=show)
    tell_cars(cars)
    draw_here(pictures["question"], [cars.pictures()], wanted=show)
    tell_portraits(portraits)
    draw_here(pictures["shortcut"], [portrait.pictures() for portrait in portraits], wanted=show)
    console.print(f"wrote [bold]{escape(', '.join(map(str, written)))}[/]", highlight=False)


@app.command()
def layers(
    model: options.Model,
    weights: options.Weights = "random",
    size: options.Size = None,
    depth: Annotated[int, typer.Option(min=1, help="How many names deep to look: backbone.layer4 is 2.")] = 2,
) -> None:
    """Show which layer is explained where none is named, and why; the runners-up; and all that can be named."""
    import numpy as np

    from glowmap.explainer import Explainer, survey
    from glowmap.shapes import crossed

    loaded = _loaded(model, "default" if ".py:" in model and weights == "random" else weights, size=size)
    # Only shapes are read: any picture does, and a preset brings it to the model's own size.
    images = loaded.read(np.full((224, 224, 3), 128, dtype=np.uint8)).images
    console.print(
        f"[bold]{escape(loaded.name)}[/], for an input of {crossed(images.shape[2:])} (rows x columns)", highlight=False
    )
    try:
        with console.status("looking"):
            choice = Explainer(loaded).find(images)
        tell_choice(choice)
    except GlowmapError as error:  # the list is wanted all the more
        console.print(f"[yellow]note:[/] {escape(error.on_command_line)}", highlight=False)
    console.print(f"\nall that can be named, {depth} names deep (--depth), in the order in which they run")
    tell_survey(survey(loaded, images, depth=depth))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, to be told all about it.")] = None,
) -> None:
    """List the methods: what each costs beside which evidence, does and needs, when to use it, and its paper."""
    from glowmap.evidence import method_cost
    from glowmap.methods import METHODS

    if name is not None:
        tell_method(METHODS[name])
        return
    wide = console.width >= _ROOM_FOR_ALL
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in (
        ("price", "what it does", "needs", "when to use it", "paper") if wide else ("price", "when to use it")
    ):
        table.add_column(column, overflow="fold")
    for method, one in METHODS.items():
        cost = method_cost(one)
        row = (cost, one.summary, ", ".join(one.needs), one.use, one.paper) if wide else (cost, one.use)
        table.add_row(method, *map(escape, row))
    console.print(table, soft_wrap=False)
    if not wide:
        console.print("[dim]`glowmap methods NAME` tells what it does, what it needs, its knobs and its paper[/]")


def _free(out: Path, picture: Path) -> Path:
    """Refuse a place that cannot be written, before anything is computed for it."""
    from glowmap.explanation.files import file_kind

    if os.path.realpath(out) == os.path.realpath(picture):  # Path.resolve fails on names that are too long
        raise OutputError(f"{out} is the picture itself and would be overwritten; choose another --out")
    file_kind(out)
    if not out.absolute().parent.is_dir():
        raise OutputError(f"{out} cannot be written: there is no folder {out.parent}; make it, or choose another --out")
    return out


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        console.print(f"glowmap {version('glowmap')}", highlight=False)
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: an error of our tree is one line and exit code 2; anything else is our bug and shows itself."""
    try:
        app()
    except GlowmapError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]error:[/] {escape(error.on_command_line)}", highlight=False
        )
        sys.exit(2)


def _loaded(
    model: str,
    weights: str,
    *,
    size: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    classes: Path | None = None,
    device: str | None = None,
) -> "Model":
    rows_columns = None if size is None else rows_and_columns(size)
    offset = None if mean is None else colours(mean, "--mean")
    scale = None if std is None else colours(std, "--std")
    import torch

    from glowmap.models import load

    return load(
        model,
        weights=weights,
        size=rows_columns,
        mean=offset,
        std=scale,
        classes=classes,
        device=device or ("cuda" if torch.cuda.is_available() else None),
    )
