"""What is asked on the command line: the options that were given, held against each other, and the targets they become."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glowmap.cli.parsing import box_number, class_asked, point
from glowmap.errors import InputError

if TYPE_CHECKING:
    from glowmap.models import Model
# What each option says, for the sentence that refuses two which do not go together.
_SAYS = {
    "target": "names a class",
    "against": "names rivals",
    "finer": "looks for the rivals itself",
    "not_": "asks what speaks against",
    "top": "takes the likeliest classes",
    "at": "points at an object",
    "box": "picks a detection",
    "above": "takes all detections from a score on",
    "of": "asks where a box lies, or how sure it is that there is anything",
    "text": "gives a sentence",
    "prompt": "asks in words",
    "word": "asks about one word",
    "words": "asks about every word",
    "like": "compares with another picture",
    "value": "takes a number that is no class",
}
# Which go together, each pair once; all others are refused.
_TOGETHER = {
    "target": ("against", "finer", "not_", "at", "box", "above"),
    "against": ("not_", "top", "at", "box", "text", "prompt"),
    "finer": ("not_", "top", "at", "box"),
    "not_": ("top", "at", "box", "above", "of", "text", "prompt", "word", "like", "value"),
    "box": ("above", "of"),
    "above": ("of",),
    "text": ("prompt", "word", "words"),
    "prompt": ("word", "words"),
}
# Where leaving one of the two out is not what helps.
_INSTEAD = {
    ("target", "text"): "ask for each by itself",
    ("target", "prompt"): "give the answer that is meant with --text",
    ("finer", "text"): "name the rivals with --against",
    ("at", "box"): "ask for each by itself",
    ("at", "text"): "ask for each by itself",
    ("word", "words"): "--words has a row for this word too",
}
_LONGEST = 40  # letters of a sentence in a file's name
_LONGEST_NAME = 150  # bytes of all of them, of the 255 that a file's name may have


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The options of a question, by their names on the command line (``not_`` is ``--not``).

    Raises InputError for two that are no question together, with both names and what to do, and for what cannot be read.
    """

    target: Sequence[str] | None = None
    against: Sequence[str] | None = None
    finer: bool = False
    not_: bool = False
    top: int | None = None
    at: Sequence[str] | None = None
    box: Sequence[str] | None = None
    above: float | None = None
    of: str | None = None
    text: Sequence[str] | None = None
    prompt: str | None = None
    word: str | None = None
    words: bool = False
    like: Sequence[Path] | None = None
    value: int | None = None

    def __post_init__(self) -> None:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        given = [name for name, value in values.items() if value is not None and value is not False and value != []]
        for at, one in enumerate(given):
            for other in given[at + 1 :]:
                if not _go_together(one, other):
                    raise InputError(_refusal(one, other))
        for one, needed in (("above", "--box all"), ("of", "--box NUMBER")):
            if one in given and not (self.box and (one != "above" or "all" in self.box)):
                raise InputError(
                    f"{_option(one)} {_SAYS[one]}, and there is no {needed}; add it, or leave {_option(one)} out"
                )
        if self.box and "all" in self.box and (self.against or self.finer):
            raise InputError(
                f"--box all adds up detections, each of its own class, so {'--against' if self.against else '--finer'} has "
                "nothing to set apart; name one: --box 0"
            )
        if self.against and self.prompt is not None and not self.text:
            raise InputError(
                "--against names rivals and --prompt asks in words; give the answer that they rival with --text"
            )
        # made now, so that what cannot be read is told before a model is loaded
        self._points, self._of_words, self._alike, self._boxes  # noqa: B018
        if self.of:
            self._detected(0, None)

    @classmethod
    def among(cls, options: Mapping[str, Any]) -> "TargetOptions":
        """Take the options of a question from all that were given."""
        return cls(**{one.name: options[one.name] for one in fields(cls)})

    def questions(self, model: "Model") -> list[Any]:
        """Make the targets of this model, a row each."""
        asked = self._of_words or self._alike or self._of_classes(model)
        if not self.not_:
            return asked
        from glowmap.targets import Not

        return [Not(one) for one in asked]

    @property
    def name(self) -> str:
        """Name the question in a few letters that any file system takes."""
        asked = [*self._sentences_named(), *(f"like {one.stem}" for one in self.like or ())] or self._classes_named()
        safe = "-".join(re.sub(r"[^\w.-]+", "_", f"{'not ' * self.not_}{one}").strip("_") for one in asked)
        return safe.encode()[:_LONGEST_NAME].decode(errors="ignore")

    @cached_property
    def _points(self) -> list[tuple[float, float]]:
        return [point(text) for text in self.at or ()]

    @cached_property
    def _boxes(self) -> list[int | None]:
        return [box_number(text) for text in self.box or ()]

    @cached_property
    def _of_words(self) -> list[Any]:
        if not (self.text or self.words) and self.prompt is None and self.word is None:
            return []
        from glowmap.targets import Text

        against = tuple(self.against or ())
        sentences: Sequence[str | None] = self.text or (None,)
        return [
            Text(one, self.prompt, word=self._word(one), each_word=self.words, against=against) for one in sentences
        ]

    def _word(self, text: str | None) -> int | str | None:
        """Read digits as a word's number, unless the text has them as a word."""
        if self.word is None or not self.word.isdecimal() or self.word in re.findall(r"\w+", text or ""):
            return self.word
        return int(self.word)

    @cached_property
    def _alike(self) -> list[Any]:
        if not self.like:
            return []
        from glowmap.inputs import read_picture
        from glowmap.targets import Similar

        return [Similar(read_picture(path), path.name) for path in self.like]

    def _of_classes(self, model: "Model") -> list[Any]:
        """Ask about classes: in the whole picture, at each place that was pointed at, or in each box."""
        if self.value is not None:
            from glowmap.targets import OutputValue

            return [OutputValue(self.value)]
        classes = self._classes(model)
        if self.box:
            return [self._detected(number, one) for one, number in product(classes, self._boxes)]
        if not self.at:
            return classes
        from glowmap.targets import At, Pixels

        return [Pixels(one, At(x, y)) for one, (x, y) in product(classes, self._points)]

    def _detected(self, number: int | None, category: Any) -> Any:
        from glowmap.targets import AllDetections, Detection

        of = self.of or "class"
        if number is not None:
            return Detection(number, of=of, category=category)
        return AllDetections(0.5 if self.above is None else self.above, of=of, category=category)

    def _classes(self, model: "Model") -> list[Any]:
        """List the classes that are asked about, each set against its rivals; None for the model's own answer."""
        named: list[Any] = [class_asked(name, model) for name in self.target or ()]
        if self.top:
            from glowmap.targets import top

            named = list(top(self.top))
        named = named or [None]
        if self.finer:
            from glowmap.targets import Finer

            return [Finer(one) for one in named]
        if not self.against:
            return named
        from glowmap.targets import Contrast, Predicted

        rivals = [class_asked(name, model) for name in self.against]
        return [Contrast(Predicted() if one is None else one, rivals) for one in named]

    def _sentences_named(self) -> list[str]:
        asked = [] if self.prompt is None else [self.prompt[:_LONGEST]]
        said = [" ".join([*asked, text[:_LONGEST]]) for text in self.text or ()] or asked
        about = f" word {self.word}" if self.word else " words" if self.words else ""
        said = said or (["answer"] if about else [])
        return [f"{one}{about}{self._rivals_named()}" for one in said]

    def _classes_named(self) -> list[str]:
        if self.value is not None:
            return [f"value {self.value}"]
        where = [f"at {one}" for one in self.at or ()] + [f"box {one}" for one in self.box or ()]
        where = [f"{self.of} of {one}" for one in where] if self.of else where
        rivals = " rather than rivals" if self.finer else self._rivals_named()
        named = self.target or ([f"top {self.top}"] if self.top else ["answer"] if rivals or not where else [])
        classes = [f"{one}{rivals}" for one in named]
        return [
            " in ".join(parts) if self.box else " ".join(parts) for parts in product(*filter(None, (classes, where)))
        ]

    def _rivals_named(self) -> str:
        return f" rather than {' and '.join(one[:_LONGEST] for one in self.against)}" if self.against else ""


def _option(field: str) -> str:
    return f"--{field.rstrip('_')}"


def _go_together(one: str, other: str) -> bool:
    return other in _TOGETHER.get(one, ()) or one in _TOGETHER.get(other, ())


def _refusal(one: str, other: str) -> str:
    instead = _INSTEAD.get((one, other), "leave one of them out")
    return f"{_option(one)} {_SAYS[one]} and {_option(other)} {_SAYS[other]}, which is no one question; {instead}"
