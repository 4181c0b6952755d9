"""The target on the command line: which options can be combined, and the targets that they stand for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from glowmap.cli import options
from glowmap.cli.parsing import parse_box, parse_class, parse_point
from glowmap.errors import InputError

if TYPE_CHECKING:
    from glowmap.models import Model

# What can be explained, and the options that describe it. Options can be combined where one row has them all.
COMBINATIONS = {
    "a class": ("target against not", "target finer not", "top against not", "top finer not"),
    "an object": ("at target against not", "at target finer not"),
    "a detection": ("box target against not", "box target finer not", "box above target not", "box above of not"),
    "a text": ("text prompt against not", "text prompt word not", "text prompt words"),
    "another picture": ("like not",),
    "a number": ("value not",),
}
# What each option does, for the sentence that refuses two that cannot be combined.
_MEANINGS = {
    "target": "names a class",
    "against": "names rivals",
    "finer": "finds the rivals itself",
    "not": "shows what speaks against the target",
    "top": "takes the likeliest classes",
    "at": "points at an object",
    "box": "picks a detection",
    "above": "takes all detections from a score on",
    "of": "picks a side of a box, its size or its objectness",
    "text": "gives a sentence",
    "prompt": "gives a question to the model",
    "word": "picks one word",
    "words": "takes every word",
    "like": "compares with another picture",
    "value": "picks an output that is not a class",
}
_LONGEST_TEXT = 40  # letters of a sentence in a file's name
_LONGEST_STEM = 150  # bytes of a file's name, of the 255 that file systems allow


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The options of the target, by their names on the command line (``not_`` is ``--not``).

    Raises InputError, before any model is loaded, for options that cannot be combined and for values that cannot be read.
    """

    target: options.Target = None
    against: options.Against = None
    finer: options.Finer = False
    not_: options.Not = False
    top: options.Top = None
    at: options.At = None
    box: options.Box = None
    above: options.Above = None
    of: options.Of = None
    text: options.Text = None
    prompt: options.Prompt = None
    word: options.Word = None
    words: options.Words = False
    like: options.Like = None
    value: options.Value = None

    def __post_init__(self) -> None:
        self._check_combination()
        self._check_rivals()
        # computed now, so that a value that cannot be read is reported before a model is loaded
        self._points, self._texts, self._similar, self._boxes  # noqa: B018
        if self.of:
            self._detection(0, None)

    def _check_combination(self) -> None:
        values = {field.name.rstrip("_"): getattr(self, field.name) for field in fields(self)}
        used = [name for name, value in values.items() if value is not None and value is not False and value != []]
        for first, second in combinations(used, 2):
            if second not in _partners(first):
                raise InputError(
                    f"--{first} {_MEANINGS[first]} and --{second} {_MEANINGS[second]}, which cannot be one target; leave one out "
                    f"(--{first} goes with {_listed(first)}; --{second} with {_listed(second)})"
                )
        for option, needed in (("above", "--box all"), ("of", "--box NUMBER")):
            if option in used and not (self.box and (option == "of" or "all" in self.box)):
                raise InputError(
                    f"--{option} {_MEANINGS[option]}, and there is no {needed}; add it, or leave --{option} out"
                )

    def _check_rivals(self) -> None:
        if self.box and "all" in self.box and (self.against or self.finer):
            raise InputError(
                f"--box all adds up detections, each of its own class, so {'--against' if self.against else '--finer'} has no "
                "class to compare with; name one detection: --box 0"
            )
        if self.against and self.prompt is not None and not self.text:
            raise InputError(
                "--against names rivals and --prompt gives a question to the model; give the answer to compare with --text"
            )

    def targets(self, model: "Model") -> list[Any]:
        """Return the targets for this model, one for each row of the figure; None is the model's own answer."""
        targets = self._texts or self._similar or self._class_targets(model)
        if not self.not_:
            return targets
        from glowmap.targets import Not

        return [Not(target) for target in targets]

    @cached_property
    def _points(self) -> list[tuple[float, float]]:
        return [parse_point(text) for text in self.at or ()]

    @cached_property
    def _boxes(self) -> list[int | None]:
        return [parse_box(text) for text in self.box or ()]

    @cached_property
    def _texts(self) -> list[Any]:
        if not (self.text or self.words) and self.prompt is None and self.word is None:
            return []
        from glowmap.targets import Text

        against = tuple(self.against or ())
        texts: Sequence[str | None] = self.text or (None,)
        return [
            Text(text, self.prompt, word=self._word_in(text), each_word=self.words, against=against) for text in texts
        ]

    def _word_in(self, text: str | None) -> int | str | None:
        """Read digits as a word's number, unless they are a word of the text."""
        if self.word is None or not self.word.isdecimal() or self.word in re.findall(r"\w+", text or ""):
            return self.word
        return int(self.word)

    @cached_property
    def _similar(self) -> list[Any]:
        if not self.like:
            return []
        from glowmap.inputs import read_picture
        from glowmap.targets import Similar

        return [Similar(read_picture(path), path.name) for path in self.like]

    def _class_targets(self, model: "Model") -> list[Any]:
        """Return classes in the whole picture, at each object, or in each box; or a number that is not a class."""
        if self.value is not None:
            from glowmap.targets import OutputValue

            return [OutputValue(self.value)]
        classes = self._classes(model)
        if self.box:
            return [self._detection(number, category) for category, number in product(classes, self._boxes)]
        if not self.at:
            return classes
        from glowmap.targets import At, Pixels

        return [Pixels(category, At(x, y)) for category, (x, y) in product(classes, self._points)]

    def _detection(self, number: int | None, category: Any) -> Any:
        from glowmap.targets import AllDetections, Detection

        of = self.of or "class"
        if number is not None:
            return Detection(number, of=of, category=category)
        return AllDetections(0.5 if self.above is None else self.above, of=of, category=category)

    def _classes(self, model: "Model") -> list[Any]:
        """Return the classes, each against its rivals; None is the model's own answer."""
        from glowmap.targets import Contrast, Finer, Predicted, top

        classes: list[Any] = [parse_class(name, model) for name in self.target or ()]
        classes = [*top(self.top)] if self.top else classes or [None]
        if self.finer:
            return [Finer(category) for category in classes]
        if not self.against:
            return classes
        rivals = [parse_class(name, model) for name in self.against]
        return [Contrast(Predicted() if category is None else category, rivals) for category in classes]

    @property
    def file_stem(self) -> str:
        """The targets in a few letters that every file system allows."""
        names = [*self._text_names(), *(f"like {path.stem}" for path in self.like or ())] or self._class_names()
        stems = [re.sub(r"[^\w.-]+", "_", f"{'not ' * self.not_}{name}").strip("_") for name in names]
        return "-".join(stems).encode()[:_LONGEST_STEM].decode(errors="ignore")

    def _text_names(self) -> list[str]:
        prompt = [] if self.prompt is None else [self.prompt[:_LONGEST_TEXT]]
        words = f" word {self.word}" if self.word else " words" if self.words else ""
        names = [" ".join([*prompt, text[:_LONGEST_TEXT]]) for text in self.text or ()] or prompt
        return [f"{name}{words}{self._rival_names()}" for name in names or (["answer"] if words else [])]

    def _class_names(self) -> list[str]:
        if self.value is not None:
            return [f"value {self.value}"]
        places = [f"at {place}" for place in self.at or ()] + [f"box {number}" for number in self.box or ()]
        places = [f"{self.of} of {place}" for place in places] if self.of else places
        rivals = " rather than rivals" if self.finer else self._rival_names()
        classes = self.target or ([f"top {self.top}"] if self.top else ["answer"] if rivals or not places else [])
        named = [f"{category}{rivals}" for category in classes]
        return [(" in " if self.box else " ").join(parts) for parts in product(*filter(None, (named, places)))]

    def _rival_names(self) -> str:
        return f" rather than {' and '.join(rival[:_LONGEST_TEXT] for rival in self.against)}" if self.against else ""


def _partners(option: str) -> list[str]:
    """Return the options that can be combined with one, in the order of the table."""
    rows = [row.split() for rows in COMBINATIONS.values() for row in rows]
    return list(dict.fromkeys(other for row in rows if option in row for other in row if other != option))


def _listed(option: str) -> str:
    return ", ".join(f"--{partner}" for partner in _partners(option))
