"""Where the parts of the benchmarks are. Run every benchmark from the project's root: `python -m benchmarks.FOLDER.NAME`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The project's root."""
RESULTS = ROOT / "benchmarks" / "results"
"""Pages and figures that the benchmarks write."""
SETS = ROOT / "benchmarks" / "sets"
"""One task file for each data set."""
