"""Write examples/claims_desk/recorded/run.tar.xz, which `smallfirst demo` replays, from a run of `make demo`.

    python tools/record_demo.py --machine "two Intel cores without AMX"

The latest run is taken, or the one in the folder that is named.
"""

import argparse
import io
import tarfile
from datetime import datetime
from pathlib import Path

from smallfirst.base.paths import state_of
from smallfirst.base.records import Record
from smallfirst.path.calibrate import CERTIFIED
from smallfirst.path.demo import RECORDED_RUN, RECORDING
from smallfirst.path.project.run_folder import CERTIFICATE, DOMAIN, FITTED, KEPT, RunFolder
from smallfirst.registry.runs import UNTRACKED

TASK = Path(__file__).parents[1] / "examples" / "claims_desk"
LIVE = ("words", "large")
"""Fitted or asked anew when the recording is replayed."""


def main() -> None:
    """Record the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--command", default="make demo")
    given = parser.parse_args()
    with state_of(TASK):
        run = RunFolder(given.run) if given.run else RunFolder.latest("claims-desk")
    found = run.fitted()
    assert found is not None
    at = datetime.strptime(run.path.name[:8], "%Y%m%d").date().isoformat()
    recording = f"recorded on {at} by {given.command} on {given.machine}"
    names = tuple(name for name in found.fitted if name not in LIVE)
    minutes = {name: found.minutes[name] for name in names}
    fitted = found.model_copy(update={"fitted": names, "mlflow_run_id": UNTRACKED, "minutes": minutes})
    texts = {RECORDING: recording, FITTED: compact(fitted)}
    for path in sorted((run.path / "evaluations").glob("*.json")):
        name, split = path.stem.rsplit("-", 1)
        one = run.evaluation(name, split)
        if name not in LIVE and one is not None:
            note = "; ".join(filter(None, (one.note, recording)))
            texts[f"evaluations/{path.name}"] = compact(one.model_copy(update={"requests_per_s": None, "note": note}))
    others = (run.path / name for name in (CERTIFICATE, CERTIFIED, KEPT, DOMAIN))
    texts |= {path.name: path.read_text("utf-8") for path in others if path.exists()}
    target = TASK / RECORDED_RUN
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    print(f"{target}: {target.stat().st_size:,} bytes, {recording}")


def compact(record: Record) -> str:
    """Return a record as JSON without what is left out by default."""
    return record.model_dump_json(exclude_defaults=True)


if __name__ == "__main__":
    main()
