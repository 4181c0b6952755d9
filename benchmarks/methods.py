"""Show what single methods cost: Glowmap beside pytorch-grad-cam and torch-cam, one image through a ResNet-50.

All figures are of one run on one machine, and nothing is asserted. The variants take turns round by round, so that noise
hits them alike, and ratios are taken within a round. Before anything is timed, the maps are compared with the peers', as only
the same work may be compared. `make bench-methods` installs the peers.
"""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from math import inf
from statistics import median
from typing import Annotated, Any

import pytorch_grad_cam
import torch
import torchcam.methods
import typer
from measuring import (
    AIMS,
    Action,
    Measured,
    Repeats,
    Threads,
    Write,
    aim,
    circumstances,
    clocked,
    lifted,
    peaks_in_fresh_processes,
    stopped,
    table,
    tells_memory,
    timed,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from rich.console import Console
from rich.markdown import Markdown
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torchvision.models import resnet50

import glowmap

CHANNELS = 2048  # of the last layer
CATEGORY = 11  # its score is positive, by which pytorch-grad-cam's Ablation-CAM divides, and no map of it is blank
LAYERS = ["layer1", "layer2", "layer3", "layer4"]
TWELVE = 12
CUBIC = {"kpca_cam"}  # in the cells, of which the first layer has thousands: no method for all layers at once
CHECKED = 32  # channels for which the maps of Score-CAM are compared
ENOUGH = 96  # images after which a run that is watched for its peak of memory is stopped

BARE, GLOWMAP, GRAD_CAM, TORCH_CAM = "bare forward", "Glowmap", "pytorch-grad-cam", "torch-cam"


class First(nn.Module):
    """Pass maps on unchanged, the first channels through a module of their own: a layer that is a share of another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.shown = nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([self.shown(maps[:, : self.channels]), maps[:, self.channels :]], 1)


class Subject:
    """A ResNet-50 with random weights and one image; with less than all channels, its last layer is a share of layer4."""

    def __init__(self, channels: int = CHANNELS, side: int = 224) -> None:
        torch.manual_seed(0)
        self.model, self.layer, self.share = resnet50(weights=None).eval(), "layer4", channels / CHANNELS
        self.images = torch.rand(1, 3, side, side)
        if channels < CHANNELS:
            self.model.layer4.append(First(channels))
            self.layer = f"layer4.{len(self.model.layer4) - 1}.shown"

    def scaled(self, seconds: float, bare: float, passes: int) -> float:
        """Scale the time of a share up to all channels, apart from the passes that come before the first channel."""
        before = passes * bare
        return seconds if self.share == 1 else before + (seconds - before) / self.share


def bare(subject: Subject) -> Action:
    """Run the forward pass alone, without autograd."""
    return torch.no_grad()(lambda: subject.model(subject.images))


def ours(subject: Subject, method: Any, layer: Any = None) -> Action:
    """Ask Glowmap as its users do, up to the heatmaps; several methods by ``compare``."""
    words: dict[str, Any] = {"method": method, "layer": layer or subject.layer}
    ask: Callable[..., Any] = glowmap.explain
    if isinstance(method, list):
        words, ask = {"method": method, "layer": layer}, glowmap.compare

    def run() -> Any:
        found = ask(subject.model, subject.images, target=CATEGORY, **words)
        for one in found if isinstance(found, glowmap.Explanations) else [found]:
            _ = one.heatmap  # computed when it is first looked at
        return found

    return run


def pytorch_grad_cams(subject: Subject, kind: Any, layer: str | None = None) -> Action:
    """Ask pytorch-grad-cam as its users do; its heatmap has the image's size."""

    def run() -> Tensor:
        module = subject.model.get_submodule(layer or subject.layer)
        # its progress bar would write over the page
        with contextlib.redirect_stderr(io.StringIO()), kind(subject.model, [module]) as cam:
            heatmap: Tensor = torch.from_numpy(cam(subject.images, [ClassifierOutputTarget(CATEGORY)]))
        return heatmap

    return run


def torch_cams(subject: Subject, kind: Any) -> Action:
    """Ask torch-cam as its users do; its heatmap has the layer's size."""

    def run() -> Tensor:
        with kind(subject.model, subject.layer) as extractor, torch.no_grad():
            subject.model(subject.images)
            (heatmap,) = extractor(CATEGORY)
        return torch.as_tensor(heatmap)

    return run


def apart(explained: glowmap.Explanation, theirs: Tensor, *, either_sign: bool = False) -> float:
    """Tell how far two heatmaps lie apart, at the size of the peer's; blank ones count as inf."""
    sized = replace(explained, input_size=tuple(theirs.shape[1:]))
    signs = [sized, replace(sized, raw=-sized.raw)] if either_sign else [sized]
    speaking = [one.heatmap for one in signs if one.heatmap.amax() > 0 and theirs.amax() > 0]
    return min((float((heatmap - theirs).abs().max()) for heatmap in speaking), default=inf)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    rounds: int
    channels: int
    score_channels: int
    score_rounds: int
    threads: int
    repeats: int


def ablation(options: Options) -> str:
    """Time Ablation-CAM at the last layer. The peer runs once, and half of Glowmap's rounds before and after it."""
    whole, share, kept = Subject(), Subject(options.channels), list[Tensor]()
    variants = {BARE: partial(bare, whole), GLOWMAP: partial(ours, whole, "ablation_cam")}
    before = timed(variants, options.rounds)
    once = clocked(lambda: kept.append(pytorch_grad_cams(share, pytorch_grad_cam.AblationCAM)()))
    after = timed(variants, options.rounds)
    seconds = {name: before[name] + after[name] for name in variants}
    seconds[GRAD_CAM] = [share.scaled(once, bare, passes=2) for bare in seconds[BARE]]
    measured = Measured(seconds)
    faster = aim("time, pytorch-grad-cam / Glowmap", measured.slower(GRAD_CAM, GLOWMAP), 150, at_least=True)
    difference = apart(ours(share, "ablation_cam")(), kept[0])
    return _section(
        f"Ablation-CAM, layer4, {len(seconds[BARE])} rounds; the peer once",
        f"{_share('pytorch-grad-cam was timed', share)}Heatmaps differ by at most {difference:.1g}.",
        costs(measured),
        table([AIMS, faster]),
    )


def eigen(options: Options) -> str:
    """Time Eigen-CAM at the last layer and at the first, where there are more cells than channels."""
    subject, parts = Subject(), []
    for layer in ("layer4", "layer1"):
        theirs = partial(pytorch_grad_cams, subject, pytorch_grad_cam.EigenCAM, layer)
        mine = partial(ours, subject, "eigen_cam", layer)
        difference = apart(mine()(), theirs()(), either_sign=True)
        measured = Measured(timed({BARE: partial(bare, subject), GLOWMAP: mine, GRAD_CAM: theirs}, options.rounds))
        faster = aim("time, pytorch-grad-cam / Glowmap", measured.slower(GRAD_CAM, GLOWMAP), 10, at_least=True)
        most = measured.slower(GRAD_CAM, BARE)
        rows = [AIMS, faster, aim("time, pytorch-grad-cam / bare forward: the most there can be", most, inf)]
        if all(mine > bare for mine, bare in zip(measured.seconds[GLOWMAP], measured.seconds[BARE], strict=True)):
            rows.append(aim("time, pytorch-grad-cam / Glowmap, without the forward pass", beyond(measured), inf))
        parts.append(
            _section(
                f"Eigen-CAM, {layer}, {options.rounds} rounds",
                f"Heatmaps differ by at most {difference:.1g}, apart from their sign, which the peer leaves to chance.",
                costs(measured),
                table(rows),
            )
        )
    return "\n\n".join(parts)


def beyond(measured: Measured) -> list[float]:
    """Compare what the peer and Glowmap take beyond the forward pass that both need."""
    rounds = zip(*(measured.seconds[name] for name in (BARE, GLOWMAP, GRAD_CAM)), strict=True)
    return [(theirs - bare) / (mine - bare) for bare, mine, theirs in rounds]


def many(options: Options) -> str:
    """Time twelve methods at four layers, in one call, beside one method at these layers."""
    subject = Subject()
    names, filled = twelve()
    together = partial(ours, subject, names, LAYERS)
    alone = [one for name in names for one in ours(subject, name, LAYERS)()]
    difference = max(_relative(one.raw, two.raw) for one, two in zip(together()(), alone, strict=True))
    one, all_of_them = "grad_cam, 4 layers", f"{len(names)} methods, 4 layers"
    variants: dict[str, Callable[[], Action]] = {
        BARE: partial(bare, subject),
        one: partial(ours, subject, "grad_cam", LAYERS),
        all_of_them: together,
    }
    measured = Measured(timed(variants, options.rounds))
    topped = f" There are {len(names) - len(filled)} by gradients; {', '.join(filled)} fill up." if filled else ""
    return _section(
        f"{len(names)} methods at four layers, {options.rounds} rounds",
        f"By `glowmap.compare`: {', '.join(names)}.{topped} Their maps differ from those of {len(names)} single calls by "
        f"at most {difference:.1g} of a map's largest value. All times include the heatmaps.",
        costs(measured),
        table([AIMS, aim(f"time, {len(names)} methods / grad_cam", measured.slower(all_of_them, one), 2)]),
    )


def twelve() -> tuple[list[str], list[str]]:
    """Choose the methods that one forward and one backward pass serve; those without gradients fill up, and are named."""
    cheap = {name: {*one.needs} for name, one in glowmap.METHODS.items() if name not in CUBIC}
    served = {name: needs for name, needs in cheap.items() if needs <= {"activations", "gradients"}}
    named = [name for name, needs in served.items() if "gradients" in needs][:TWELVE]
    filled = [name for name in served if name not in named][: TWELVE - len(named)]
    return named + filled, filled


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


SCORE_CAMS: dict[str, Callable[[Subject], Action]] = {
    GLOWMAP: lambda subject: ours(subject, "score_cam"),
    GRAD_CAM: lambda subject: pytorch_grad_cams(subject, pytorch_grad_cam.ScoreCAM),
    TORCH_CAM: lambda subject: torch_cams(subject, torchcam.methods.ScoreCAM),
}
PASSES = {BARE: 0, GLOWMAP: 1, GRAD_CAM: 1, TORCH_CAM: 2}  # before the first channel


def score(options: Options) -> str:
    """Time Score-CAM at the last layer, and measure its peaks of memory."""
    few, share = Subject(CHECKED), Subject(options.score_channels)
    corners = glowmap.METHODS["score_cam"].with_parameters(corners=True)
    as_grad_cam = apart(ours(few, corners)(), SCORE_CAMS[GRAD_CAM](few)())
    as_torch_cam = apart(ours(few, "score_cam")(), SCORE_CAMS[TORCH_CAM](few)())
    variants = {name: partial(make, share) for name, make in {BARE: bare, **SCORE_CAMS}.items()}
    seconds = timed(variants, options.score_rounds, warm=0)  # the maps that were compared were warm-up enough
    for name, passes in PASSES.items():
        if name != BARE:
            pairs = zip(seconds[name], seconds[BARE], strict=True)
            seconds[name] = [share.scaled(spent, bare, passes) for spent, bare in pairs]
    peaks = {name: peaks_in_fresh_processes(__file__, [name], options.threads, options.repeats) for name in SCORE_CAMS}
    measured = Measured(seconds, peaks)
    return _section(
        f"Score-CAM, layer4, {options.score_rounds} rounds",
        f"{_share('Each was timed', share)}Over the first {CHECKED} channels the heatmaps differ from pytorch-grad-cam's by "
        f"at most {as_grad_cam:.1g} (with `corners`, its way to enlarge masks), from torch-cam's by {as_torch_cam:.1g}. Peak "
        f"memory is that of all {CHANNELS} channels; the run is stopped after {ENOUGH} images, when no more is to come.",
        costs(measured),
        score_aims(measured),
    )


def score_aims(measured: Measured) -> str:
    """Hold Glowmap against the faster peer of each round, and against each peer's memory."""
    faster = [min(pair) for pair in zip(measured.seconds[GRAD_CAM], measured.seconds[TORCH_CAM], strict=True)]
    ratios = [mine / peer for mine, peer in zip(measured.seconds[GLOWMAP], faster, strict=True)]
    rows = [AIMS, aim("time, Glowmap / the faster peer", ratios, 1)]
    for peer in (GRAD_CAM, TORCH_CAM):
        if heavier := measured.heavier(GLOWMAP, peer):
            rows.append(aim(f"memory, Glowmap / {peer}", heavier, 0.5))
    return table(rows)


def costs(measured: Measured) -> str:
    """Lay out what each variant costs, and which share of it is the forward pass that all need."""
    heading: tuple[str, ...] = ("", "time", "time / bare", "forward pass")
    rows = [heading + ("peak memory",) * bool(measured.peaks)]
    for name, seconds in measured.seconds.items():
        forward = median(measured.slower(BARE, name))
        row = (name, _time(median(seconds)), f"{median(measured.slower(name, BARE)):.2f}", f"{forward:.1%}")
        peaks = measured.peaks.get(name)
        rows.append(row + (f"{median(peaks):.0f} MB" if peaks else "",) * bool(measured.peaks))
    return table(rows)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _share(what: str, subject: Subject) -> str:
    if subject.share == 1:
        return ""
    return f"**{what} on {subject.share * CHANNELS:.0f} of the {CHANNELS} channels, and the time is scaled up.** "


def _section(title: str, *paragraphs: str) -> str:
    return "\n\n".join((f"## {title}", *paragraphs))


class Section(StrEnum):
    """What can be asked for alone."""

    ABLATION = "ablation"
    EIGEN = "eigen"
    MANY = "many"
    SCORE = "score"


SECTIONS: dict[Section, Callable[[Options], str]] = {
    Section.ABLATION: ablation,
    Section.EIGEN: eigen,
    Section.MANY: many,
    Section.SCORE: score,
}

EXPLAINED = """\
ResNet-50 with random weights, one image of 224 x 224 pixels, the peers with their own defaults: pytorch-grad-cam {grad_cam}
and torch-cam {torch_cam}. Bare forward: the model under `torch.no_grad()`. Every other variant is the whole call, from model
and image to the heatmap. Times are medians, ratios of times the medians of the ratios within each round; \"forward pass\" is
the bare pass as a share of the whole. Peak memory (on Linux) is what one run adds to the process that holds the loaded model."""

Rounds = Annotated[int, typer.Option(min=3, help="Rounds, but for the calls that take minutes.")]
Channels = Annotated[
    int,
    typer.Option(min=1, max=CHANNELS, help="Channels for which the peer's Ablation-CAM is timed; fewer are scaled up."),
]
ScoreChannels = Annotated[
    int, typer.Option(min=1, max=CHANNELS, help="Channels for which all Score-CAMs are timed; fewer are scaled up.")
]
ScoreRounds = Annotated[int, typer.Option(min=1, help="Rounds for Score-CAM.")]
Only = Annotated[list[Section] | None, typer.Option(help="Leave the other sections out.")]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    rounds: Rounds = 7,
    channels: Channels = CHANNELS,
    score_channels: ScoreChannels = 128,
    score_rounds: ScoreRounds = 3,
    only: Only = None,
    threads: Threads = 1,
    repeats: Repeats = 1,
    write: Write = None,
) -> None:
    """Measure what methods of Glowmap cost beside those of pytorch-grad-cam and torch-cam."""
    if context.invoked_subcommand:
        return
    torch.set_num_threads(threads)
    options = Options(rounds, channels, score_channels, score_rounds, threads, repeats)
    console, page = Console(), [f"# What methods cost\n\n{circumstances(__file__, threads)}"]
    with threadpool_limits(threads):  # NumPy's, too, which does the peers' linear algebra
        for section in only or SECTIONS:
            console.print(Markdown(page[-1]))
            with console.status(section.value):
                page.append(SECTIONS[section](options))
    page.append(EXPLAINED.format(grad_cam=version("grad-cam"), torch_cam=version("torchcam")))
    console.print(Markdown("\n\n".join(page[-2:])))
    if write:
        write.write_text("\n\n".join(page) + "\n", encoding="utf-8")


@app.command(hidden=True)
def peak(variant: str, threads: Threads = 1) -> None:
    """Print by how many MB Score-CAM lifts this process above the loaded model; nothing where the system does not tell."""
    if not tells_memory():
        return
    torch.set_num_threads(threads)
    subject = Subject()
    images = subject.images
    # A first run on small images, so that the libraries' own code, which must be loaded once, is not counted.
    subject.images = images[:, :, :64, :64]
    stopped(subject.model, ENOUGH, SCORE_CAMS[variant](subject))
    subject.images = images
    print(lifted(lambda: stopped(subject.model, ENOUGH, SCORE_CAMS[variant](subject))))


if __name__ == "__main__":
    app()
