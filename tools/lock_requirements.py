"""Write requirements.lock: base, serve and postgres requirements, each of one version with the SHA-256 of its files.

python tools/lock_requirements.py    # today's versions by pip; run it on Linux with the oldest Python served
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
EXTRA = "serve,postgres"
PIP = [sys.executable, "-m", "pip"]
HEAD = f"""\
# Made by tools/lock_requirements.py: what smallfirst[{EXTRA}] needs, with the hashes of all files of each version.
# pip install --require-hashes -r requirements.lock && pip install --no-deps WHEEL
"""


def resolve() -> dict[str, str]:
    """Return the versions by normalised name that pip would install into an empty environment, without smallfirst."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        options = ["--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([*PIP, "install", *options, f"{ROOT}[{EXTRA}]"], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    pinned = {re.sub(r"[-_.]+", "-", item["name"]).lower(): str(item["version"]) for item in found}
    del pinned["smallfirst"]
    return pinned


def index_url() -> str:
    """Return the address of pip's index."""
    own = subprocess.run([*PIP, "config", "get", "global.index-url"], capture_output=True, text=True)
    return (os.environ.get("PIP_INDEX_URL") or own.stdout.strip() or "https://pypi.org/simple").rstrip("/")


def hashes(index: str, name: str, version: str) -> list[str]:
    """Return the SHA-256 of all files of a version (PEP 691). Raise SystemExit if the index knows none."""
    request = urllib.request.Request(f"{index}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files: list[dict[str, Any]] = json.load(answer)["files"]
    found = {file["hashes"]["sha256"] for file in files if version_of(file["filename"], name) == version}
    if not found:
        raise SystemExit(f"the index has no hashed files of {name} {version}")
    return sorted(found)


def version_of(filename: str, name: str) -> str:
    """Return the version in the name of a wheel or source archive of the project `name`; empty for other files."""
    stem = filename.removesuffix(".tar.gz").removesuffix(".zip")
    parts = filename.split("-") if filename.endswith(".whl") else re.split(r"-(?=\d[^-]*$)", stem)
    return parts[1] if len(parts) > 1 and re.sub(r"[-_.]+", "-", parts[0]).lower() == name else ""


if __name__ == "__main__":
    index = index_url()
    lines = [
        " \\\n".join(
            [f"{name}=={version}", *(f"    --hash=sha256:{digest}" for digest in hashes(index, name, version))]
        )
        for name, version in sorted(resolve().items())
    ]
    LOCK.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{LOCK.name}: {len(lines)} requirements")
