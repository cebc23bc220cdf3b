"""Photograph the first screen of a report for README.md and the documentation site, with a headless Chromium.

make demo
python tools/report_picture.py report.html      # writes docs/images/report.png
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "report.png"
SIZE = (1090, 965)
"""Width and height in pixels: four cards on one row, and the chart below them."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def photograph(report: Path, picture: Path) -> None:
    """Write a PNG of the top of `report`. Raise SystemExit if no browser is installed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"no browser: install one of {', '.join(BROWSERS)}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu"),
            *(f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={picture}", report.resolve().as_uri()),
        ],
        check=True,
        capture_output=True,
    )


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), PICTURE)
    print(PICTURE)
