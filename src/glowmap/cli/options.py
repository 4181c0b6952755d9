"""The options of the command line: the name, the help text and the help panel of each."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_model_option = partial(typer.Option, rich_help_panel="The model")
_target_option = partial(typer.Option, rich_help_panel="The target (default: the model's own answer)")
_method_option = partial(typer.Option, rich_help_panel="How to explain it")
_output_option = partial(typer.Option, rich_help_panel="What is written")

Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="The picture to explain.")]

# the model
Model = Annotated[
    str,
    _model_option(
        "--model",
        "-m",
        metavar="NAME",
        help="resnet50, timm/NAME, hf/NAME, smp/NAME, open_clip/NAME, demo, FILE.py:factory.",
    ),
]
Weights = Annotated[
    str | None,
    _model_option(
        metavar="WHICH",
        help="default: trained weights, downloaded once (a factory's own weights); random; or the path of a checkpoint.",
    ),
]
Size = Annotated[
    str | None,
    _model_option(
        metavar="SIZE",
        help="Resize the picture, without keeping its proportions: 224, or ROWSxCOLUMNS. Else as the model's preset says.",
    ),
]
Mean = Annotated[
    str | None, _model_option(metavar="NUMBERS", help="Subtract this from RGB in [0, 1]: one number, or R,G,B.")
]
Std = Annotated[str | None, _model_option(metavar="NUMBERS", help="Divide RGB by this: one number, or R,G,B.")]
Classes = Annotated[
    Path | None, _model_option(metavar="FILE", help="A text file with one class name a line, in the model's order.")
]
Device = Annotated[
    str | None, _model_option(metavar="DEVICE", help="cpu, cuda, cuda:1, ... The default is a GPU, where there is one.")
]

# the target
Target = Annotated[
    list[str] | None,
    _target_option("--target", "-t", metavar="CLASS", help="A class, by name or index. Repeat for several."),
]
Against = Annotated[
    list[str] | None,
    _target_option(
        metavar="CLASS",
        help="Compare with this class (or sentence): what speaks for the target rather than for it. Repeatable.",
    ),
]
Finer = Annotated[
    bool, _target_option("--finer", help="Compare with the classes that score nearest to the target (Finer-CAM).")
]
Not = Annotated[bool, _target_option("--not", help="Show what speaks against the target instead.")]
Top = Annotated[
    int | None, _target_option(min=1, metavar="NUMBER", help="The NUMBER likeliest classes, each on its own.")
]
At = Annotated[
    list[str] | None,
    _target_option(
        metavar="X,Y",
        help="The object at this pixel of the picture, counted from the top left. With --target: that class at the object. "
        "Repeatable.",
    ),
]
Box = Annotated[
    list[str] | None,
    _target_option(
        metavar="NUMBER|all",
        help="A detection: 0 is the surest; all adds them up. With --target: that class in the box (all: the boxes of that "
        "class). Repeatable.",
    ),
]
Above = Annotated[
    float | None,
    _target_option(
        min=0.0,
        max=1.0,
        metavar="SCORE",
        help="With --box all: only detections of at least this score. The default is 0.5.",
    ),
]
Of = Annotated[
    str | None,
    _target_option(
        metavar="WHAT",
        help="With --box: explain the box's left, top, right, bottom, width, height or objectness, not its class.",
    ),
]
Text = Annotated[
    list[str] | None,
    _target_option(
        metavar="WORDS", help="A sentence that describes the picture, or that the model may write. Repeatable."
    ),
]
Prompt = Annotated[
    str | None,
    _target_option(metavar="WORDS", help="A question to the model; its own answer is explained, or that of --text."),
]
Word = Annotated[
    str | None, _target_option(metavar="WORD", help="One word of the text, as it is written or by its number from 0.")
]
Words = Annotated[bool, _target_option("--words", help="The text, and then each of its words.")]
Like = Annotated[
    list[Path] | None, _target_option(metavar="PICTURE", help="The similarity to another picture. Repeatable.")
]
Value = Annotated[
    int | None,
    _target_option(min=0, metavar="INDEX", help="An output that is not a class: an age, a count, a depth."),
]

# layers and methods
Layer = Annotated[
    list[str] | None,
    _method_option(
        "--layer",
        "-l",
        metavar="NAME",
        help="A layer's dotted name (see `glowmap layers`). Repeat for several, side by side. The default is searched for.",
    ),
]
Method = Annotated[
    list[str] | None,
    _method_option(
        "--method",
        metavar="NAME",
        help="See `glowmap methods`. Repeatable. The default is grad_cam, or hires_cam for a target that is a part of the "
        "picture.",
    ),
]
Setting = Annotated[
    list[str] | None,
    _method_option("--set", metavar="NAME=VALUE", help="A parameter of the method, such as masks=2000. Repeatable."),
]
Smooth = Annotated[
    list[str] | None,
    _method_option(
        metavar="HOW",
        help="Average over changed pictures: flips, scales or noise; or keep the principal part. Repeatable.",
    ),
]
Fuse = Annotated[str | None, _method_option(metavar="HOW", help="Merge the layers into one map: product, mean or max.")]

# what is written
Out = Annotated[
    Path | None,
    _output_option(
        "--out",
        "-o",
        metavar="FILE",
        help="A figure (.png, .jpg, .pdf, ...) or the numbers (.npz). "
        "The default name is made of the picture's name and what is explained.",
    ),
]
Colormap = Annotated[
    str,
    _output_option(
        metavar="NAME",
        help="The heat's colours: glow, jet or gray; or signed, which shows what speaks against it as well.",
    ),
]
Opacity = Annotated[
    float,
    _output_option(min=0.0, max=1.0, metavar="SHARE", help="How much of the picture the hottest place covers."),
]
Scale = Annotated[int | None, _output_option(min=1, max=8, metavar="TIMES", help="Enlarge the figure; 2 suits print.")]
