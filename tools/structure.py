"""Print the size and shape of the code: files, lines, folders, imports between folders, circles of files.

    python tools/structure.py [PROJECT_FOLDER]

Needs grimp (import-linter brings it) and networkx. A *room* is a folder at the root of the package with all below it,
or a module there. *Floors* are the rooms on the longest chain of imports.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import grimp
import networkx


def main(project: Path) -> None:
    """Print one figure a line."""
    sys.path.insert(0, str(project))
    graph = grimp.build_graph("smallfirst", cache_dir=None)
    package = project / "smallfirst"

    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    modules = networkx.DiGraph((a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a))
    rooms = networkx.DiGraph((room(a), room(b)) for a, b in modules.edges if room(a) != room(b))
    circles = [sorted(found) for found in networkx.strongly_connected_components(modules) if len(found) > 1]
    files = list(package.rglob("*.py"))
    folders = Counter(path.parent.relative_to(project).as_posix() for path in files)
    print(f"package        {len(files)} files, {lines(files)} lines")
    print(f"tests          {lines(project.glob('tests/**/*.py'))} lines")
    print(f"benchmarks     {lines(project.glob('benchmarks/**/*.py'))} lines")
    print(f"at the root    {folders['smallfirst']} modules")
    print("largest folder {0[0]} with {0[1]} files".format(folders.most_common(1)[0]))
    print(f"longest file   {max(lines([path]) for path in files)} lines")
    print(f"rooms          {rooms.number_of_nodes()}")
    print(f"floors         {networkx.dag_longest_path_length(networkx.condensation(rooms)) + 1}")
    print(f"arrows         {rooms.number_of_edges()}")
    print(f"circles        {len(circles)} of files {circles or ''}")
    tied = [sorted(found) for found in networkx.strongly_connected_components(rooms) if len(found) > 1]
    print(f"               {len(tied)} of rooms {tied or ''}")


def lines(paths: object) -> int:
    """Return the number of lines of all `paths`."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
