"""The options of the command line: how each is called, what it says of itself, and under which heading it stands."""

from pathlib import Path
from typing import Annotated

import typer

QUESTION = "The question"
HOW = "How to explain it"
MODEL = "The model"
DRAWN = "The picture that is written"
Picture = Annotated[Path, typer.Argument(help="The picture to explain.")]
# the question
Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        metavar="CLASS",
        rich_help_panel=QUESTION,
        help="A class by name or index; again for several. The model's own answer where nothing is asked.",
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS",
        rich_help_panel=QUESTION,
        help="Rather than this class, or this sentence; again for several rivals.",
    ),
]
Finer = Annotated[
    bool, typer.Option("--finer", rich_help_panel=QUESTION, help="Rather than the classes nearest to it (Finer-CAM).")
]
Not = Annotated[
    bool, typer.Option("--not", rich_help_panel=QUESTION, help="What speaks against it, whatever is asked.")
]
Top = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="NUMBER", rich_help_panel=QUESTION, help="The so many likeliest classes, each by itself."
    ),
]
At = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y",
        rich_help_panel=QUESTION,
        help="The object under this pixel of the picture, counted from its top left corner; with --target what speaks for this "
        "class there. Again for several.",
    ),
]
Box = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NUMBER|all",
        rich_help_panel=QUESTION,
        help="A detection: 0 is the surest; with --target what speaks there for this class. Or all; with --target those of this "
        "class. Again for several.",
    ),
]
Above = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="SCORE",
        rich_help_panel=QUESTION,
        help="--box all: those of at least this score, else 0.5.",
    ),
]
Of = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        rich_help_panel=QUESTION,
        help="--box: not its class, but its left, top, right, bottom, width, height, or its objectness.",
    ),
]
Text = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WORDS",
        rich_help_panel=QUESTION,
        help="A sentence that fits the picture, or that the model may say of it. Again for several.",
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS",
        rich_help_panel=QUESTION,
        help="What to ask the model in words; its own answer, or that of --text.",
    ),
]
Word = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        rich_help_panel=QUESTION,
        help="One word of what is said, as it is written or by its number from 0.",
    ),
]
Words = Annotated[
    bool, typer.Option("--words", rich_help_panel=QUESTION, help="What is said, and each word of it by itself.")
]
Like = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PICTURE", rich_help_panel=QUESTION, help="What makes it like this other picture. Again for several."
    ),
]
Value = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="INDEX",
        rich_help_panel=QUESTION,
        help="What raises a number that the model answers with and that is no class: an age, a count, a depth.",
    ),
]
# how to explain it
Layer = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "-l",
        metavar="NAME",
        rich_help_panel=HOW,
        help="A layer's dotted name (`glowmap layers`); again for several side by side. The one that is found otherwise.",
    ),
]
Method = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        rich_help_panel=HOW,
        help="How to weigh the evidence (`glowmap methods`); again for several. Otherwise grad_cam, or hires_cam where "
        "the question is about a part of the picture.",
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KNOB=VALUE", rich_help_panel=HOW, help="A knob of the method: masks=2000. Again for several."
    ),
]
Smooth = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOW",
        rich_help_panel=HOW,
        help="Average over changed pictures: flips, scales, noise; or principal. Again for several.",
    ),
]
Fuse = Annotated[
    str | None,
    typer.Option(metavar="HOW", rich_help_panel=HOW, help="Make one map of the layers: product, mean or max."),
]
# the model
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        rich_help_panel=MODEL,
        help="resnet50, timm/NAME, hf/NAME, smp/NAME, open_clip/NAME, demo, FILE.py:factory.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="WHICH",
        rich_help_panel=MODEL,
        help="default (trained, downloaded once; a factory's as they are), random, or a checkpoint's path.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        rich_help_panel=MODEL,
        help="Resize (squash) the picture to this: 224, or ROWSxCOLUMNS. A model's own preset otherwise, else its own size.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="NUMBERS", rich_help_panel=MODEL, help="Subtracted from RGB in [0, 1]: one number, or R,G,B."),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="NUMBERS", rich_help_panel=MODEL, help="RGB is divided by this: one number, or R,G,B."),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=MODEL, help="A text file with one class name a line, in the model's order."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", rich_help_panel=MODEL, help="cpu, cuda, cuda:1, ...; a GPU where there is one."),
]
# the picture that is written
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        rich_help_panel=DRAWN,
        help="Where to write: .png, .jpg, .pdf, ... for the panel, .npz for the numbers. PICTURE-QUESTION.png otherwise.",
    ),
]
Colormap = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        rich_help_panel=DRAWN,
        help="Colours of the heat: glow, jet, gray; or signed, with what speaks against.",
    ),
]
Opacity = Annotated[
    float,
    typer.Option(
        min=0.0, max=1.0, metavar="SHARE", rich_help_panel=DRAWN, help="How much the hottest place covers the picture."
    ),
]
Scale = Annotated[
    int | None,
    typer.Option(
        min=1, max=8, metavar="TIMES", rich_help_panel=DRAWN, help="Draw the panel so many times larger, for print."
    ),
]
