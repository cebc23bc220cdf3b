"""The demo that the package holds: the claims desk's run, replayed in seconds but for the words, which are fitted here.

The recording holds the answers of `make demo`, row by row, with the certificate and the Router's answers. Finalists,
gate, outcome and report are made from them by the stages of any run. Nothing goes live: the models are not recorded.
"""

from __future__ import annotations

import shlex
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import smallfirst
from smallfirst.base.errors import ConfigError
from smallfirst.base.paths import state_of
from smallfirst.base.progress import Progress
from smallfirst.path.evaluate import evaluate_stage
from smallfirst.path.finalists import chosen_by
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FittedCandidates, RunFolder, only_run
from smallfirst.path.project.task_file import read_task_file
from smallfirst.path.release import decide_outcome, gate_stage
from smallfirst.path.report.page import report_stage
from smallfirst.path.summary import NextStep, RunSummary, summarize_run
from smallfirst.path.train import train_stage

RECORDED_RUN = Path("recorded") / "run.tar.xz"
"""Files of a run folder, in the folder of the demo's task; tools/record_demo.py makes it."""
RECORDING = "recording.txt"
"""File in it that says when, by which command and on which machine."""


def demo(folder: str | Path = "smallfirst-demo", *, progress: Progress | None = None) -> RunSummary:
    """Write the demo's task into `folder`, fit its words, replay the rest of its run and return the summary.

    It needs neither network nor weights nor PyTorch. Raise ConfigError if another task is in the folder.
    """
    place, progress = Path(folder), progress or Progress()
    _write_task(place)
    with state_of(place):
        project = Project.read(read_task_file(place), progress)
        with only_run(project.file.name):
            run_folder = RunFolder.new(project.file.name)
            with tarfile.open(place / RECORDED_RUN) as recorded:
                recorded.extractall(run_folder.path, filter="data")
            recording = (run_folder.path / RECORDING).read_text(encoding="utf-8")
            progress.log(f"words are fitted here; what is marked replayed was {recording}")
            _replay(project, run_folder)
            progress.log(decide_outcome(project, run_folder).sentence)
            page = shutil.copyfile(report_stage(project, run_folder), place / "report.html")
        found = summarize_run(project.file, run_folder)
    return found.model_copy(update={"report": str(page), "next_steps": tuple(_next_steps(place))})


def _replay(project: Project, run_folder: RunFolder) -> None:
    """Run the stages up to the gate on recorded answers, and say of each figure that it is replayed."""
    log, recorded = project.progress.log, run_folder.fitted() or FittedCandidates(ladder=())
    for name in recorded.fitted:
        if measured := chosen_by(run_folder, name):
            log(f"replayed: {name} on {measured.split} rows: {measured.in_words}")
    train_stage(project, resume=True)
    for measured in evaluate_stage(project, run_folder, resume=True):
        if measured.candidate in {*recorded.fitted, "routed"}:
            log(f"replayed: {measured.candidate} on test rows: {measured.in_words}")
    gate_stage(project, run_folder)
    log(f"replayed: certificate: {run_folder.certificate().report.why}")


def _write_task(place: Path) -> None:
    source, file = Path(smallfirst.__file__).parent / "examples" / "claims_desk", place / "task.yaml"
    if file.exists() and file.read_bytes() != (source / "task.yaml").read_bytes():
        raise ConfigError(
            f"{place} holds another task", hint="smallfirst demo FOLDER   writes the demo to another folder"
        )
    shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def _next_steps(place: Path) -> Iterator[NextStep]:
    yield NextStep(what="your own rows: a table, a chat log, an export", command="smallfirst init desk --from your.csv")
    yield NextStep(what="see what they allow, then train, measure and decide", command="smallfirst run desk")
    train = f'pip install "smallfirst[train]" && smallfirst run {shlex.quote(str(place))}'
    yield NextStep(what="fit all of the demo here, in minutes", command=train)
