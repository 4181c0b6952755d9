"""The command line: strings in, the functions of the library, a few lines and a file out.

Torch is imported inside the commands, so that ``glowmap --help`` answers at once.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from glowmap.cli import options
from glowmap.cli.groups import MethodOptions, ModelOptions, StyleFields, with_groups
from glowmap.cli.output import (
    console,
    print_choice,
    print_explanations,
    print_heat_by_car,
    print_heat_by_layer,
    print_marked_pictures,
    print_method,
    print_methods,
    print_survey,
    show_panel,
)
from glowmap.cli.targets import TargetOptions
from glowmap.errors import GlowmapError, OutputError

app = typer.Typer(
    name="glowmap",
    help="See where a PyTorch vision model finds the evidence for its answer.",
    epilog="Start with `glowmap demo`: it needs no model and no network.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)


@app.command(
    epilog="Example: glowmap explain photo.jpg --model resnet50 --target 'tabby cat' --target 'remote control'"
)
@with_groups
def explain(
    picture: options.Picture,
    model: ModelOptions,
    target: TargetOptions,
    how: MethodOptions,
    out: options.Out = None,
    *,
    style: StyleFields,
) -> None:
    """Show where in a picture the model finds the evidence for its answer, or for another target.

    The model's own answer is the likeliest class, the largest class of a segmentation, the surest detection or its text.
    """
    out = _checked_out(out or Path(f"{picture.stem}-{target.file_stem}.png"), picture)
    from glowmap.explainer import Explainer
    from glowmap.inputs import read_picture

    # mistakes in the options are reported before weights are loaded
    methods, drawing = how.methods(), style.style()
    image = read_picture(picture)
    loaded = model.load()
    with console.status("explaining"):
        explanations = Explainer(loaded, layer=how.layer).explain_all(
            image, target=target.targets(loaded), method=methods, smooth=how.smooth or []
        )
        explanations = explanations.fused(how.fuse) if how.fuse else explanations
        written = explanations.save(out, **drawing)
    print_explanations(explanations, written)


@app.command(epilog="Example: glowmap concepts photo.jpg --model resnet50 --count 5")
@with_groups
def concepts(
    picture: options.Picture,
    model: ModelOptions,
    layer: options.Layer = None,
    count: Annotated[int, typer.Option(min=1, help="Into how many concepts a layer is decomposed.")] = 4,
    out: options.Out = None,
) -> None:
    """Decompose what a layer sees in a picture into concepts, and name the classes that each speaks for."""
    out = _checked_out(out or Path(f"{picture.stem}-concepts.png"), picture)
    from glowmap.decomposition import concepts as find_concepts
    from glowmap.inputs import read_picture

    image = read_picture(picture)
    loaded = model.load()
    with console.status("decomposing"):
        explanations = find_concepts(loaded, image, layer=layer, count=count)
        written = explanations.save(out)
    print_explanations(explanations, written)


@app.command(epilog="Example: glowmap layers --model resnet50 --depth 3")
@with_groups
def layers(
    model: ModelOptions,
    depth: Annotated[int, typer.Option(min=1, help="Names of so many parts: backbone.layer4 has 2.")] = 2,
) -> None:
    """Show which layer is explained by default, and why; the runners-up; and the layers to choose from.

    Without --weights the weights are random here, so nothing is downloaded: the layer depends on them very little.
    """
    import numpy as np

    from glowmap.explainer import Explainer, survey
    from glowmap.shapes import crossed

    loaded = model.load(default_weights="default" if ".py:" in model.model else "random")
    # Only shapes are read, so any picture does; a preset resizes it.
    images = loaded.read(np.full((224, 224, 3), 128, dtype=np.uint8)).images
    console.print(
        f"[bold]{escape(loaded.name)}[/], for an input of {crossed(images.shape[2:])} (rows x columns)", highlight=False
    )
    try:
        with console.status("searching"):
            choice = Explainer(loaded).find(images)
        print_choice(choice)
    except GlowmapError as error:  # the list helps all the more
        console.print(f"[yellow]caution:[/] {escape(error.on_command_line)}", highlight=False)
    console.print(f"\nlayers to choose from, in the order in which they run (names of up to {depth} parts: --depth)")
    print_survey(survey(loaded, images, depth=depth))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Describe this method in full.")] = None,
) -> None:
    """List the methods: their cost, when to use them and, in a wide terminal, what they do and their papers."""
    from glowmap.methods import METHODS

    if name is None:
        print_methods(METHODS)
    else:
        print_method(METHODS[name])


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the pictures.")] = Path("demo-out"),
    show: Annotated[bool, typer.Option(help="Show the pictures in the terminal too.")] = True,
) -> None:
    """Explain drawn streets with small bundled models: a first look, without a network."""
    from glowmap.cli import demonstration
    from glowmap.explanation.files import write_whole

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {out} cannot be made ({error.strerror}); choose another --out") from error
    with console.status("explaining"):
        by_layer, by_car, marked = (
            demonstration.heat_by_layer(),
            demonstration.heat_by_car(),
            demonstration.marked_pictures(),
        )
        pictures = {
            "scene": by_layer.scene.picture,
            "layers": by_layer.panel(),
            "question": by_car.explanations.panel(),
            "shortcut": demonstration.marked_panel(marked),
        }
    written = [
        write_whole(out / f"{name}.png", partial(picture.save, format="PNG")) for name, picture in pictures.items()
    ]
    print_heat_by_layer(by_layer)
    show_panel(pictures["layers"], [by_layer.pictures()], wanted=show)
    print_heat_by_car(by_car)
    show_panel(pictures["question"], [by_car.pictures()], wanted=show)
    print_marked_pictures(marked)
    show_panel(pictures["shortcut"], [picture.pictures() for picture in marked], wanted=show)
    console.print(f"wrote [bold]{escape(', '.join(map(str, written)))}[/]", highlight=False)


def _checked_out(out: Path, picture: Path) -> Path:
    """Return a path that can be written. Raises OutputError before anything is computed for it."""
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
    """Run the command line.

    A :class:`GlowmapError` is printed in one line, with exit code 2. Any other exception is a bug of Glowmap and is shown.
    """
    try:
        app()
    except GlowmapError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]error:[/] {escape(error.on_command_line)}", highlight=False
        )
        sys.exit(2)
