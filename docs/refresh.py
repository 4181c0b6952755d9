"""Draw the pictures of the README, which are those of ``glowmap demo``, and write the tables of methods.md and cautions.md."""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import glowmap
from glowmap.cautions import CAUTIONS, CautionKind
from glowmap.cli import demonstration
from glowmap.evidence import method_cost
from glowmap.methods import METHODS

DOCS = Path(__file__).parent
METHODS_PAGE = DOCS / "methods.md"
CAUTIONS_PAGE = DOCS / "cautions.md"
HEAD = "| name | cost | what it does | when to use it | paper |\n|---|---|---|---|---|\n"
CAUTIONS_HEAD = """# Cautions

`explanation.cautions` says what to know before trusting a map. Each caution is a sentence (a `str`) that names the fact and the
place, with a `code` that never changes and a `level`: `info` says what the map shows, `caution` that it may mislead.

| code | level | what to do |
|---|---|---|
"""


def table() -> str:
    """Format all methods as a Markdown table."""
    rows = [
        f"| `{name}` | {method_cost(method)} | {method.summary} | {method.use} | {method.paper} |\n"
        for name, method in METHODS.items()
    ]
    return HEAD + "".join(rows)


def all_cautions() -> list[CautionKind]:
    """Return all kinds of cautions, by code. They are defined where they arise, so every module is imported."""
    for module in walk_packages(glowmap.__path__, "glowmap."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    return [CAUTIONS[code] for code in sorted(CAUTIONS)]


def cautions_page() -> str:
    """Format all kinds of cautions as a page."""
    rows = [f"| `{kind.code}` | {kind.level} | {kind.remedy} |\n" for kind in all_cautions()]
    return CAUTIONS_HEAD + "".join(rows)


def main() -> None:
    """Write the pictures and the tables."""
    demonstration.heat_by_layer().panel().save(DOCS / "images" / "demo.png", optimize=True)
    demonstration.heat_by_car().explanations.panel().save(DOCS / "images" / "question.png", optimize=True)
    demonstration.marked_panel(demonstration.marked_pictures()).save(DOCS / "images" / "shortcut.png", optimize=True)
    METHODS_PAGE.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: table(), METHODS_PAGE.read_text()))
    CAUTIONS_PAGE.write_text(cautions_page())


if __name__ == "__main__":
    main()
