"""Draw the pictures of the README, which are those of ``glowmap demo``, and write the table of docs/methods.md."""

import re
from pathlib import Path

from glowmap.cli import demonstration
from glowmap.evidence import method_cost
from glowmap.methods import METHODS

DOCS = Path(__file__).parent
METHODS_PAGE = DOCS / "methods.md"
HEAD = "| name | cost | what it does | when to use it | paper |\n|---|---|---|---|---|\n"


def table() -> str:
    """Format all methods as a Markdown table."""
    rows = [
        f"| `{name}` | {method_cost(method)} | {method.summary} | {method.use} | {method.paper} |\n"
        for name, method in METHODS.items()
    ]
    return HEAD + "".join(rows)


def main() -> None:
    """Write the pictures and the table."""
    demonstration.heat_by_layer().panel().save(DOCS / "images" / "demo.png", optimize=True)
    demonstration.heat_by_car().explanations.panel().save(DOCS / "images" / "question.png", optimize=True)
    demonstration.marked_panel(demonstration.marked_pictures()).save(DOCS / "images" / "shortcut.png", optimize=True)
    METHODS_PAGE.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: table(), METHODS_PAGE.read_text()))


if __name__ == "__main__":
    main()
