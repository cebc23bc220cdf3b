"""What a plain `smallfirst run` does for a user who sets `data`, `gate` and `ladder: [words, encoder, tuned]` alone.

    python -m benchmarks.accuracy.plain_runs RUNS --label before                 # every case, samples first
    python -m benchmarks.accuracy.plain_runs RUNS --label after --reuse before   # full sets with the fitted models of before
    python -m benchmarks.accuracy.plain_runs RUNS --table before after           # write benchmarks/results/plain_runs.md

Each case (`plain_sets.py`) is a folder RUNS/LABEL/CASE with one file of rows and a task.yaml, on which the real command
line runs, with a state folder of its own. What went live then answers the rows that the run never had
(`smallfirst score`), and so does every candidate. The command line is that of the checkout in PYTHONPATH, by default
this one; it must lie outside of the current folder. RUNS/LABEL/CASE.json has the result; a case that has one is left out, one that was interrupted is resumed.

With `--reuse` a full set is not trained again (nor is one with a hosted model, after the same set without it): the case's folder is copied from that label with its fitted models,
everything that later stages wrote is deleted, and `run --resume` measures the candidates again and goes through these
stages. Where the run refuses that (the rows are split otherwise, say), it is made anew; `way` in the result says which.
A resumed run is another process than the one that fitted: costs, which are measured times, may order candidates otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from benchmarks.accuracy import plain_page
from benchmarks.accuracy.plain_sets import HOSTED, Case, case_names, read_case
from benchmarks.datasets import ROOT, hosted_rows
from smallfirst.stats.intervals import clopper_pearson, wilson

LADDER = ("words", "encoder", "tuned")
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
MAIN = (sys.executable, "-m", "smallfirst.cli.main")
FITTED_FILES = (*LADDER, "candidates.json", "run.json", "events.jsonl", "checkpoints")
"""What training writes to a run folder; the later stages make the rest anew."""
LIVE_KINDS = ("small alone", "small first")
NOT_ANSWERED = ("person", "out_of_scope")
"""Stages of a Router that give no answer of the small or the large model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--label", default="", help="run every case below RUNS/LABEL")
    parser.add_argument("--reuse", default="", help="label whose fitted models full sets use again")
    parser.add_argument("--cases", nargs="+", default=case_names(), help="such as snips-150; left out: all")
    parser.add_argument("--table", nargs="+", metavar="LABEL", help="write the page from the results of these labels")
    options = parser.parse_args()
    runs: Path = options.runs.absolute()
    if options.label:
        checkout = start(runs)
        print(f"{options.label}: smallfirst of {checkout['package']}, commit {checkout['commit']}", flush=True)
        for name in options.cases:
            result = runs / options.label / f"{name}.json"
            if not result.exists():
                reuse = fitted_case(name, runs, options.label, options.reuse)
                found = run_case(read_case(name), runs / options.label / name, reuse)
                result.write_text(json.dumps({"checkout": checkout, **found}, indent=2) + "\n", encoding="utf-8")
                print(f"{name}: {found['minutes']} min, exit {found['exit_code']}: {found['verdict']}", flush=True)
    if options.table:
        print(plain_page.write(runs, options.table))


def start(runs: Path) -> dict[str, str]:
    """Fetch the encoder's weights for all cases; return the package that the command line is of, and its commit."""
    runs.mkdir(parents=True, exist_ok=True)
    pulled = command(runs, "models", "pull", ENCODER, SMALLFIRST_HOME=str(runs / ".smallfirst"))
    if pulled.returncode:
        sys.exit(pulled.stderr)
    where = [sys.executable, "-c", "import smallfirst; print(smallfirst.__path__[0])"]
    package = subprocess.check_output(where, cwd=runs, env=environment(), text=True).strip()
    git = ["git", "-C", package, "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"package": package, "commit": commit or "unknown", "date": time.strftime("%Y-%m-%d")}


def fitted_case(name: str, runs: Path, label: str, reuse: str) -> Path | None:
    """Return the folder of a case whose fitted models this one uses again; None if it is trained.

    A full set with `--reuse` takes its own of that label; one with a hosted model takes those of the set without it.
    """
    own = runs / reuse / name
    same = runs / label / name.removeprefix(HOSTED)
    if reuse and name.endswith("-full") and own.with_suffix(".json").exists():
        return own
    return same if name.startswith(HOSTED) and same.with_suffix(".json").exists() else None


def run_case(case: Case, folder: Path, reuse: Path | None) -> dict[str, Any]:
    """Run one case and answer its held-back rows; return all figures."""
    way = "anew"
    began = time.monotonic()
    ran: subprocess.CompletedProcess[str] | None = None
    if reuse is not None:
        copy_fitted(reuse, folder)
        write_case(case, folder)
        way, ran = f"fitted models of {reuse.parent.name}/{reuse.name}", command(folder, "run", "--resume", log=True)
        if outcome_of(folder) is None:
            way, ran = f"anew, since reuse was refused: {last_line(ran.stderr)}", None
    elif (run := run_folder(folder)) and not (run / "report.html").exists():
        way = "anew, interrupted once: the minutes are those after that"
        ran = command(folder, "run", "--resume", log=True)
        if outcome_of(folder) is None:
            way, ran = "anew", None
    if ran is None:
        shutil.rmtree(folder, ignore_errors=True)
        write_case(case, folder)
        ran = command(folder, "run", log=True)
    minutes = round((time.monotonic() - began) / 60, 2)
    outcome = outcome_of(folder) or {}
    found = {
        "case": case.name,
        "way": way,
        "exit_code": ran.returncode,
        "minutes": minutes,
        "verdict": outcome.get("sentence") or last_line(ran.stderr),
        "kind": outcome.get("kind", "no outcome"),
        "candidate": outcome.get("candidate"),
        "share_small": outcome.get("share_small"),
        "share_promised": outcome.get("share_promised"),
        "promise": outcome.get("promise", ""),
        "labels_needed": (outcome.get("labels_needed") or {}).get("in_words", ""),
        "gate": case.gate,
        "n_given": len(case.given),
        "n_labels": len({row.label for row in case.given}),
        "n_held_back": len(case.held_back),
    }
    if not outcome:  # the check refused the rows: see what the candidates would have been
        despite = command(folder, "run", "--despite-check", log=True)
        found["despite_check"] = (outcome_of(folder) or {}).get("sentence") or last_line(despite.stderr)
    run = run_folder(folder)
    measured = {name: accuracy_on_test(run, name) for name in (*LADDER, "large")}
    found["test"] = {"live": outcome.get("accuracy"), **measured}
    answers = {"live": held_back(folder, "live")} if outcome.get("kind") in LIVE_KINDS else {}
    for name in LADDER:
        if run and (models := sorted((run / name).glob("**/smallfirst.json"))):
            live = answers.get("live", {})
            if name == outcome.get("candidate") and {"small"} <= live.get("stages", {}).keys() <= {"small", "person"}:
                answers[name] = {"accuracy": live["all_drafts"]}  # it has drafted every answer
            else:
                answers[name] = held_back(folder, name, "--model", str(models[0].parent))
    return {**found, "held_back": answers}


def write_case(case: Case, folder: Path) -> None:
    """Write the case's rows and its task.yaml, in which only data, gate, ladder and perhaps the large model are set."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("rows", case.given), ("held_back", case.held_back)):
        lines = (json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    settings: dict[str, Any] = {"data": {"train": "rows.jsonl"}, "ladder": list(LADDER)}
    settings["gate"] = {"accuracy_at_least": case.gate}
    if case.source.startswith(HOSTED):
        settings = {"name": case.name.removeprefix(HOSTED), **settings}  # the same rows, so the same fitted models
        settings["large"] = {"recorded": str((hosted_rows(case.source, folder) / "recorded.jsonl").relative_to(folder))}
    (folder / "task.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def copy_fitted(source: Path, folder: Path) -> None:
    """Copy a case with its fitted models, without what later stages wrote; its MLflow store then knows the new place."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("scored", "*.db", "*.db-*"))
    run = run_folder(folder)
    assert run is not None, f"{source} has no run with fitted models"
    kept = [run, *(run / name for name in FITTED_FILES)]
    if source.parent == folder.parent:  # measured by the same code: a plain run would have measured no less and no more
        kept += [run / "evaluations"]
        for path in (run / "evaluations").glob("*"):
            if path.name.startswith(("routed", "large")):
                path.unlink()
    for path in run.rglob("run.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(str(source), str(folder)), encoding="utf-8")
    for path in [*run.iterdir(), *run.parent.iterdir()]:  # beside the run: how often its rows were looked at
        if path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with closing(sqlite3.connect(source / ".smallfirst" / "mlflow.db")) as old:
        statements = "\n".join(old.iterdump()).replace(str(source), str(folder))
    with closing(sqlite3.connect(folder / ".smallfirst" / "mlflow.db")) as new:
        new.executescript(statements)
        for (table,) in new.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if table.startswith(("registered_model", "model_version")):
                new.execute(f"DELETE FROM {table}")
        new.commit()


def command(folder: Path, *words: str, log: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`; with `log` keep what it prints in a file there."""
    env = {**environment(), **variables}
    done = subprocess.run([*MAIN, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    if log:
        with (folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"$ smallfirst {' '.join(words)}\n{done.stderr}{done.stdout}exit code {done.returncode}\n")
    return done


def environment() -> dict[str, str]:
    """Return the environment of the command line: the checkout of PYTHONPATH, no hub, no state of another project.

    On a machine that others use as well, threads that spin while they wait cost a third of the time.
    """
    left_out = ("SMALLFIRST_HOME", "MLFLOW_TRACKING_URI", "SMALLFIRST_LEDGER")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    return {"PYTHONPATH": str(ROOT), **env, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def run_folder(folder: Path) -> Path | None:
    """Return the case's latest run folder; None without one."""
    return max((folder / ".smallfirst" / "tasks").glob("*/*/"), key=lambda path: path.name, default=None)


def outcome_of(folder: Path) -> dict[str, Any] | None:
    """Return the outcome that the case's latest run wrote; None if it did not get that far."""
    run = run_folder(folder)
    if run is None or not (run / "outcome.json").exists():
        return None
    found: dict[str, Any] = json.loads((run / "outcome.json").read_text(encoding="utf-8"))
    return found


def accuracy_on_test(run: Path | None, name: str) -> dict[str, Any] | None:
    """Return a candidate's accuracy on the run's own test rows; None if it was not measured."""
    path = run / "evaluations" / f"{name}-test.json" if run else None
    return json.loads(path.read_text(encoding="utf-8"))["accuracy"] if path and path.exists() else None


def held_back(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Answer the held-back rows with what is live, or with one model; return shares and errors with 95 % intervals."""
    import pyarrow.parquet

    out = folder / "scored" / name
    shutil.rmtree(out, ignore_errors=True)
    done = command(folder, "score", ".", "held_back.jsonl", "--out", str(out), "--keep", "label", *options, log=True)
    parts = sorted(out.glob("part-*.parquet"))
    if not parts:
        return {"error": last_line(done.stderr)}
    rows = [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]
    answered = [row for row in rows if row["answer"] is not None and row["stage"] not in NOT_ANSWERED]
    promised = [row for row in rows if row["certified"]]
    n_wrong = sum(row["answer"] != row["label"] for row in promised)
    n_right = sum(row["answer"] == row["label"] for row in rows)
    return {
        "stages": dict(Counter(row["error"] or row["stage"] for row in rows)),
        "answered": wilson(len(answered), len(rows)).model_dump(),
        "accuracy": wilson(sum(row["answer"] == row["label"] for row in answered), len(answered)).model_dump(),
        "all_drafts": wilson(n_right, len(rows)).model_dump(),
        "promised": wilson(len(promised), len(rows)).model_dump(),
        "n_promised_wrong": n_wrong,
        "promised_wrong": clopper_pearson(n_wrong, len(promised)).model_dump(),
    }


def last_line(text: str) -> str:
    """Return the last line that a command printed about its error: the one before its hint."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("  next:")]
    return lines[-1] if lines else ""


if __name__ == "__main__":
    main()
