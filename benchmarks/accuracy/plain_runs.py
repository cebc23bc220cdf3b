"""What a plain `smallfirst run` does for a user who sets `data` and `gate` alone.

    python -m benchmarks.accuracy.plain_runs RUNS --label before --ladder words encoder tuned   # an older default
    python -m benchmarks.accuracy.plain_runs RUNS --label after                  # every case, samples first
    python -m benchmarks.accuracy.plain_runs RUNS --label after --reuse before   # full sets with the fitted models of before
    python -m benchmarks.accuracy.plain_runs RUNS --table before after           # write benchmarks/results/plain_runs.md

Each case is a folder RUNS/LABEL/CASE with one file of rows and a task.yaml, on which the real command
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
import platform
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.datasets import RESULTS, ROOT, data_folder, hosted_rows, read_lines
from smallfirst.base.stats.intervals import Estimate, clopper_pearson, wilson

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
MAIN = (sys.executable, "-m", "smallfirst.interfaces.cli.main")
LADDER = ("words", "encoder", "tuned", "larger_encoder", "larger_tuned", "blend")
"""The candidates for labels that a run may fit without being asked."""
FETCHED_MB = {"encoder": 84, "larger_encoder": 405}
"""Downloads of the encoders, by the candidate that needs each first."""
FITTED_FILES = (*LADDER, "candidates.json", "run.json", "events.jsonl", "checkpoints")
"""What training writes to a run folder; the later stages make the rest anew."""
NOT_ANSWERED = ("person", "out_of_scope")
"""Stages of a Router that give no answer of the small or the large model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--label", default="", help="run every case below RUNS/LABEL")
    parser.add_argument("--ladder", nargs="+", help="candidates that task.yaml names; left out: none, the default")
    parser.add_argument("--reuse", default="", help="label whose fitted models full sets use again")
    parser.add_argument("--most", type=int, default=MAX_GIVEN, help="rows given of a set in full")
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
                found = run_case(read_case(name, options.most), runs / options.label / name, reuse, options.ladder)
                result.write_text(json.dumps({"checkout": checkout, **found}, indent=2) + "\n", encoding="utf-8")
                print(f"{name}: {found['minutes']} min, exit {found['exit_code']}: {found['verdict']}", flush=True)
    if options.table:
        print(write_page(runs, options.table))


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


def run_case(case: Case, folder: Path, reuse: Path | None, ladder: Sequence[str] | None = None) -> dict[str, Any]:
    """Run one case and answer its held-back rows; return all figures."""
    way = "anew"
    began = time.monotonic()
    ran: subprocess.CompletedProcess[str] | None = None
    if reuse is not None:
        copy_fitted(reuse, folder)
        write_case(case, folder, ladder)
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
        write_case(case, folder, ladder)
        ran = command(folder, "run", log=True)
    minutes = round((time.monotonic() - began) / 60, 2)
    outcome = outcome_of(folder) or {}
    found = {
        "case": case.name, "way": way, "exit_code": ran.returncode, "minutes": minutes,
        "verdict": outcome.get("sentence") or last_line(ran.stderr), "kind": outcome.get("kind", "no outcome"),
        "candidate": outcome.get("candidate"), "share_small": outcome.get("share_small"),
        "share_promised": outcome.get("share_promised"), "promise": outcome.get("promise", ""),
        "labels_needed": (outcome.get("labels_needed") or {}).get("in_words", ""), "gate": case.gate,
        "n_given": len(case.given), "n_labels": len({row.label for row in case.given}),
        "n_held_back": len(case.held_back),
    }  # fmt: skip
    if not outcome:  # the check refused the rows: see what the candidates would have been
        despite = command(folder, "run", "--despite-check", log=True)
        found["despite_check"] = (outcome_of(folder) or {}).get("sentence") or last_line(despite.stderr)
    run = run_folder(folder)
    measured = {name: on_test(run, name).get("accuracy") for name in (*LADDER, "large")}
    found["test"] = {"live": outcome.get("accuracy"), **measured}
    live_on_test = on_test(run, outcome.get("candidate"))
    found["served"] = {key: live_on_test[key] for key in ("p50_ms", "requests_per_s") if key in live_on_test}
    fitted = json.loads((run / "candidates.json").read_text(encoding="utf-8")) if run else {}
    found["left_out"] = fitted.get("left_out", {})
    found["fetched_mb"] = sum(mb for name, mb in FETCHED_MB.items() if name in fitted.get("fitted", ()))
    answers = {"live": held_back(folder, "live")} if outcome.get("kind") in LIVE_KINDS else {}
    for name in LADDER:
        if run and (models := sorted((run / name).glob("**/smallfirst.json"))):
            live = answers.get("live", {})
            if name == outcome.get("candidate") and {"small"} <= live.get("stages", {}).keys() <= {"small", "person"}:
                answers[name] = {"accuracy": live["all_drafts"]}  # it has drafted every answer
            else:
                answers[name] = held_back(folder, name, "--model", str(models[0].parent))
    return {**found, "held_back": answers}


def write_case(case: Case, folder: Path, ladder: Sequence[str] | None) -> None:
    """Write the case's rows and its task.yaml: data and gate, and perhaps the ladder and the large model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("rows", case.given), ("held_back", case.held_back)):
        lines = (json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    settings: dict[str, Any] = {"data": {"train": "rows.jsonl"}, **({"ladder": list(ladder)} if ladder else {})}
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


def on_test(run: Path | None, name: str | None) -> dict[str, Any]:
    """Return a candidate's evaluation on the run's own test rows; empty if it was not measured."""
    path = run / "evaluations" / f"{name}-test.json" if run else None
    return json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}


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


SEED = 0
N_SAMPLES = (150, 300, 600)
"""Labelled rows of a sample in all, from which a run takes its validation and test rows as well."""
SAMPLED = ("banking77", "clinc150", "snips", "tool_calls")
FULL = ("xsid", "banking77", "hosted_banking77", "snips", "clinc150", "tool_calls")
"""Sets in full, in the order in which they run."""
HOSTED = "hosted_"
"""What stands before the name of a source that has a hosted model's answers."""
MAX_GIVEN = 5_000
"""Rows given of a set in full, drawn with the seed, so that five fine-tunes take an hour on two busy cores."""
MAX_HELD_BACK = {"sample": 1_000, "full": 2_000}
"""Rows held back, drawn with the seed: official test rows first, for samples then training rows that were not given."""
MANY_LABELS = 100
"""Labels from which a full set's gate is 0.85 instead of 0.90."""
SAMPLE_GATE, FULL_GATE, MANY_LABELS_GATE = 0.80, 0.90, 0.85


class Row(NamedTuple):
    """A labelled text."""

    text: str
    label: str
    group: str


class Case(NamedTuple):
    """What one run is given, and what it never sees."""

    name: str
    source: str
    gate: float
    """Accuracy that its gate asks for; fixed by rule before anything was measured."""
    given: list[Row]
    held_back: list[Row]


def case_names() -> list[str]:
    return [f"{source}-{n}" for source in SAMPLED for n in N_SAMPLES] + [f"{source}-full" for source in FULL]


def read_case(name: str, most: int = MAX_GIVEN) -> Case:
    """Return the case of this name, such as `snips-150` or `xsid-full`; of a set in full at most so many rows."""
    source, _, size = name.rpartition("-")
    train, test = read_source(source)
    if size == "full":
        given = draw(train, most, seed=name.removeprefix(HOSTED))[0]
        n_labels = len({row.label for row in given})
        gate = MANY_LABELS_GATE if n_labels >= MANY_LABELS else FULL_GATE
        unseen = fresh(shuffled(test, source.removeprefix(HOSTED)), given)
        return Case(name, source, gate, given, unseen[: MAX_HELD_BACK["full"]])
    wanted = sampled_part(source, train)
    train, test = [row for row in train if wanted(row)], [row for row in test if wanted(row)]
    given, rest = draw(train, int(size), seed=name)
    unseen = fresh([*shuffled(test, name), *rest], given)
    return Case(name, source, SAMPLE_GATE, given, unseen[: MAX_HELD_BACK["sample"]])


def draw(rows: list[Row], n: int, *, seed: str) -> tuple[list[Row], list[Row]]:
    """Draw groups by chance until there are `n` rows; return them and the rows of all other groups, in drawn order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    order = sorted(groups)
    random.Random(f"{SEED} {seed}").shuffle(order)
    drawn: list[Row] = []
    n_groups = next((i for i in count() if i == len(order) or len(drawn) >= n or drawn.extend(groups[order[i]])), 0)
    return drawn[:n], [row for group in order[n_groups:] for row in groups[group]]


def shuffled(rows: list[Row], seed: str) -> list[Row]:
    return random.Random(f"{SEED} {seed}").sample(rows, len(rows))


def fresh(rows: Iterable[Row], given: Iterable[Row]) -> list[Row]:
    known = {_folded(row.text) for row in given}
    return [row for row in rows if _folded(row.text) not in known]


def sampled_part(source: str, train: list[Row]) -> Callable[[Row], bool]:
    """Return which rows of a source its samples are drawn from: 7 to 30 labels, chosen with the seed."""
    rng = random.Random(f"{SEED} {source}")
    if source == "clinc150":
        domains = json.loads((data_folder(source) / "domains.json").read_text(encoding="utf-8"))
        labels = {label for domain in rng.sample(sorted(domains), 2) for label in domains[domain]}
    elif source == "banking77":
        labels = set(rng.sample(sorted({row.label for row in train}), 15))
    elif source == "tool_calls":
        services = set(rng.sample(sorted({row.group.split("/")[0] for row in train}), 4))
        return lambda row: row.group.split("/")[0] in services
    else:
        return lambda row: True
    return lambda row: row.label in labels


def read_source(source: str) -> tuple[list[Row], list[Row]]:
    """Return the training rows of a source, its validation rows among them, and its official test rows."""
    if source == "tool_calls":
        return _tool_calls()
    folder = data_folder({"snips": "snips_slots"}.get(source, source.removeprefix(HOSTED)))
    parts = (("en.valid",), ("en.test",)) if source == "xsid" else (("train", "validation"), ("test",))
    numbers = count()
    train, test = (
        [
            Row(value["text"], value.get("label") or value["target"]["intent"], str(next(numbers)))
            for part in names
            for value in read_lines(folder / f"{part}.jsonl")
            if value.get("label") != "oos"
        ]
        for names in parts
    )
    return train, test


def _tool_calls() -> tuple[list[Row], list[Row]]:
    """Return a row for each call of a function: what assistant and user said last, and the function.

    The set has no official test rows: 30 % of the dialogues, drawn with the seed, stand in for them.
    """
    rows: list[Row] = []
    for file in sorted((data_folder("tool_calls")).glob("*.jsonl.gz")):
        service = file.name.partition(".")[0]
        for value in read_lines(file):
            calls = value["response"]["choices"][0]["message"].get("tool_calls")
            said = [m for m in value["request"]["messages"] if m["role"] in ("user", "assistant") and m.get("content")]
            if calls:
                text = "\n".join(f"{m['role']}: {m['content']}" for m in said[-2:])
                rows.append(Row(text, calls[0]["function"]["name"], f"{service}/{value['dialogue']}"))
    return draw(rows, round(0.7 * len(rows)), seed="tool_calls")


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


PAGE = RESULTS / "plain_runs.md"
LIVE_KINDS = ("small alone", "small first")
HEAD = """# Plain runs: what goes live for a user who sets data and gate

`python -m benchmarks.accuracy.plain_runs`, {dates}, {machine}, shared with other work, so minutes are upper bounds. Each case is one file
of labelled rows and a task.yaml with `data` and `gate: {{accuracy_at_least: …}}`; the run splits the file
itself, and the default guarantee applies. *Before* has the older default, `ladder: [words, encoder, tuned]`. Gates were fixed by rule before anything was measured: 0.80 for samples, 0.90 for sets in full, 0.85 for those
with 100 labels or more. Rows held back were never given to the run: official test rows, for samples also training rows that were not drawn;
copies of given texts are left out, at most {held_sample:,} rows ({held_full:,} for sets in full).

Samples are plain draws (seed {seed}) from {sampled}: banking77 15 labels, clinc150 two domains, snips its 7 intents, tool_calls four services. Of sets in full at
most {given:,} rows are given. `tool_calls`: a row is what assistant and user said last before a call, its label the function; dialogues are never on both sides.
`hosted_banking77` is banking77 with a hosted model's recorded answers as `large`, with the models fitted for banking77; no other case has a large model.

*Live on test rows*: accuracy of what goes live on the run's own test rows. *Live, held back*: the same on held-back rows; a request that is refused as out of scope counts as wrong, one that is left to a person is not counted. *Promised*: share of
held-back rows answered under the promise. Intervals are at 95 % (Wilson; Clopper and Pearson for wrong answers). A candidate in bold went live.
"""


def write_page(runs: Path, labels: Sequence[str]) -> Path:
    results = {label: read_results(runs / label) for label in labels}
    PAGE.write_text(page(results), encoding="utf-8")
    return PAGE


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    paths = ((name, folder / f"{name}.json") for name in case_names())
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths if path.exists()}


def page(results: Mapping[str, Mapping[str, dict[str, Any]]]) -> str:
    every = [found for by_case in results.values() for found in by_case.values()]
    machine = f"{os.cpu_count()} {_vendor()} cores, no GPU, Python {platform.python_version().rpartition('.')[0]}"
    lines = [
        HEAD.format(
            dates=", ".join(sorted({found["checkout"]["date"] for found in every})),
            machine=machine,
            held_sample=MAX_HELD_BACK["sample"],
            held_full=MAX_HELD_BACK["full"],
            given=MAX_GIVEN,
            seed=SEED,
            sampled=", ".join(SAMPLED),
        )
    ]
    commits = {label: sorted({f["checkout"]["commit"] for f in found.values()}) for label, found in results.items()}
    for label, found in commits.items():
        missing = [name for name in case_names() if name not in results[label]]
        lines.append(f"- {label}: commit {', '.join(found)}" + (f"; not run: {', '.join(missing)}" if missing else ""))
    lines.append("")
    lines += ["## In sum", "", *summary(results), "", "## Case by case", ""]
    lines += [
        "| case | rows, labels | gate | | verdict | live on test rows | live, held back | "
        "words / encoder / tuned / larger encoder / larger tuned / blend, held back | promised | wrong among promised | "
        "p50 ms, requests/s | MB fetched | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in case_names():
        found = {label: by_case[name] for label, by_case in results.items() if name in by_case}
        lines += [_row(one, label, first=i == 0) for i, (label, one) in enumerate(found.items())]
    lines += ["", "## What was said", ""]
    for name in case_names():
        for label, by_case in results.items():
            if name in by_case:
                one = by_case[name]
                way = "" if one["way"] == "anew" else f" ({one['way']})"
                lines.append(f"- **{name}**, {label}{way}, exit code {one['exit_code']}: {one['verdict']}")
    return "\n".join(lines) + "\n"


def summary(results: Mapping[str, Mapping[str, dict[str, Any]]]) -> list[str]:
    """Return a table with a row for each label, over samples and over sets in full."""
    titles = [
        "cases",
        *LIVE_KINDS,
        "nothing live",
        "small alone, below its gate on held-back rows",
        "nothing live, though a candidate reaches the gate on held-back rows",
        "small alone behind the best candidate, in points on held-back rows (mean; worst)",
        "of which by the choice of the candidate, without what is refused (mean; worst)",
        "cases with a promise",
        "promised of all held-back rows",
        "wrong among promised",
    ]
    lines = [f"| | | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for part, is_full in (("samples", False), ("in full", True)):
        for label, by_case in results.items():
            found = [one for name, one in by_case.items() if name.endswith("-full") == is_full]
            if found:
                lines.append(f"| {part} | {label} | {' | '.join(_sums(found))} |")
    return lines


def _sums(found: Sequence[dict[str, Any]]) -> list[str]:
    live = [one for one in found if one["kind"] in LIVE_KINDS]
    alone = [one for one in live if one["kind"] == "small alone"]
    below = [one for one in alone if _live(one).value < one["gate"]]
    missed = [one for one in found if one not in live and _best(one) >= one["gate"]]
    behind = [100 * (_best(one) - _live(one).value) for one in alone]
    chosen = [100 * (_best(one) - _held(one, one["candidate"])["value"]) for one in alone]
    promised = [one["held_back"]["live"] for one in live if one["held_back"]["live"].get("promised", {}).get("value")]
    n_promised = sum(one["promised_wrong"]["n"] for one in promised)
    n_wrong = sum(one["n_promised_wrong"] for one in promised)
    kinds = [sum(one["kind"] == kind for one in found) for kind in LIVE_KINDS]
    return [
        str(len(found)),
        *map(str, kinds),
        str(len(found) - len(live)),
        f"{len(below)} of {len(alone)}",
        f"{len(missed)} of {len(found) - len(live)}",
        *(f"{sum(points) / len(points):.1f}; {max(points):.1f}" if points else "–" for points in (behind, chosen)),
        str(len(promised)),
        f"{n_promised:,} of {sum(one['n_held_back'] for one in found):,}",
        f"{n_wrong:,} of {n_promised:,}",
    ]


def _row(one: dict[str, Any], label: str, *, first: bool) -> str:
    live = one["held_back"].get("live", {})
    verdict = f"{one['kind']}: {one['candidate']}" if one["kind"] in LIVE_KINDS else one["kind"]
    held = []
    for name in LADDER:
        value = _held(one, name)
        said = f"{value['value']:.3f}" if value else "–"
        held.append(f"**{said}**" if name == one["candidate"] else said)
    n = one["n_held_back"]
    cells = [one["case"], f"{one['n_given']:,}, {one['n_labels']}", f"{one['gate']:.2f}"] if first else ["", "", ""]
    wrong = live.get("promised_wrong", {})
    cells += [
        label,
        verdict,
        _estimate(one["test"]["live"]),
        f"{_estimate(_live(one).model_dump())}{_not_answered(live)}" if live else "–",
        f"{' / '.join(held)}, n={n:,}",
        f"{live['promised']['value']:.3f}" if wrong.get("n") else "0",
        f"{live['n_promised_wrong']} of {wrong['n']:,}: {_ends(wrong)}" if wrong.get("n") else "–",
        f"{one['served']['p50_ms']:.0f}, {one['served']['requests_per_s']:.0f}" if one["served"] else "–",
        f"{one['fetched_mb']}",
        f"{one['minutes']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _live(one: Mapping[str, Any]) -> Estimate:
    """Return the share of right answers of the live path on held-back rows, without those left to a person."""
    live = one["held_back"]["live"]
    n_right = round(live["accuracy"]["value"] * live["accuracy"]["n"])
    return wilson(n_right, sum(live["stages"].values()) - live["stages"].get("person", 0))


def _not_answered(live: Mapping[str, Any]) -> str:
    said = {"out_of_scope": "refused", "person": "left to a person", "large": "by the large model"}
    n = sum(live["stages"].values())
    return "".join(f"; {live['stages'][k] / n:.3f} {what}" for k, what in said.items() if k in live["stages"])


def _held(one: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """Return the accuracy on held-back rows; empty if there is none."""
    found: Mapping[str, Any] = one["held_back"].get(name, {}).get("accuracy", {})
    return found


def _best(one: Mapping[str, Any]) -> float:
    return max((_held(one, name).get("value", 0.0) for name in LADDER), default=0.0)


def _estimate(found: Mapping[str, Any] | None) -> str:
    return f"{found['value']:.3f} {_ends(found)}, n={found['n']:,}" if found else "–"


def _ends(found: Mapping[str, Any]) -> str:
    return f"[{found['low']:.3f}, {found['high']:.3f}]"


def _vendor() -> str:
    info = Path("/proc/cpuinfo")
    return "Intel" if info.exists() and "GenuineIntel" in info.read_text(encoding="utf-8") else platform.machine()


if __name__ == "__main__":
    main()
