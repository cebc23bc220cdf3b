"""Write the tree of packages in docs/design/layout.md from the first line of each package's docstring.

python tools/layout_tree.py            # rewrite the tree
python tools/layout_tree.py --check    # exit with 1 if the page differs
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "design" / "layout.md"
BEGIN, END = "<!-- tree: made by tools/layout_tree.py -->\n```text\n", "```\n<!-- end of tree -->"


def summary(path: Path) -> str:
    """Return the first line of the module docstring of `path`, without the full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def tree() -> str:
    """Return one line for each package, indented by depth, after the modules at the root."""
    package = ROOT / "smallfirst"
    modules = sorted(path.stem for path in package.glob("*.py") if path.stem != "__init__")
    lines = [f"smallfirst/    {' · '.join(modules)}"]
    for init in sorted(package.rglob("__init__.py")):
        folder = init.parent.relative_to(package)
        if folder.parts:
            name = "  " * len(folder.parts) + f"{folder.name}/"
            lines.append(f"{name:<28}{summary(init)}")
    return "\n".join(lines) + "\n"


def updated(page: str) -> str:
    """Return `page` with the tree of today between its markers. Raise ValueError if the markers are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the lines {BEGIN!r} and {END!r}")
    return before + BEGIN + tree() + END + after


def main() -> int:
    """Rewrite or check the page; return the exit code."""
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        return int(page != updated(page))
    PAGE.write_text(updated(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
