"""Compare the proxy's rate between two checkouts, side by side: passing on, capturing, and answering small.

    python -m benchmarks.serving.proxy_versions BEFORE AFTER [--rounds 10] [--seconds 2]

Both proxies of a kind run at once, bound to one core, in front of one instant upstream; the clients ask them in turn, in an
order that alternates, so that whatever else the machine does falls on both. `taken over` is a task of two labels that each
checkout has learnt itself: all but its audits is answered small. Ratios of AFTER to BEFORE in answers a second, and in the proxy's
processor time an answer, which other programs disturb less: medians of the rounds with their exact 95 % intervals, which
take 6 rounds. Writes benchmarks/results/proxy_versions.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from benchmarks.paths import RESULTS
from benchmarks.serving.gateway import MODEL, Running, free_port, load, start, stopped, wait_for, waiting
from benchmarks.serving.gateway_upstream import ANSWER
from benchmarks.serving.proxy import SECOND_CORE, SETTINGS, bound
from smallfirst.stats.intervals import quantile_interval
from smallfirst.traffic.answers.answer_format import AnswerFormat
from smallfirst.traffic.task_source import FILE_NAME, Slot, TaskSource, TaskTemplate, Teacher
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern

RESULT = RESULTS / "proxy_versions.md"
KINDS = ("plain", "capture", "taken over")
LOADS = {"1 client": {"clients": 1}, "64 clients": {"clients": 64}}
VERB = "from smallfirst.cli.main import main; main(prog_name='smallfirst')"
LABEL = ANSWER["choices"][0]["message"]["content"]  # type: ignore[index]
WORDS = {LABEL: "sky blue sea green air light", "Another.": "tax bank loan rate fee debt"}


def draft(folder: Path) -> None:
    """Write a task as `discover` drafts it, whose wording is that of the clients' requests."""
    folder.mkdir(parents=True)
    turn = TurnPattern(role="user", text=TextPattern(pieces=("Tell me in one sentence why ", "")))
    TaskSource(
        name="why",
        templates=(TaskTemplate(template=Template(turns=(turn,)), slots=(Slot(name="text"),)),),
        answer_format=AnswerFormat(kind="label"),
        models=(MODEL,),
        teacher=Teacher(model=str(ANSWER["model"])),
    ).save(folder / FILE_NAME)
    drawn, rows = random.Random(1), []
    for i in range(600):
        label = sorted(WORDS)[i % 2]
        text = f"the {' and the '.join(drawn.choices(WORDS[label].split(), k=5))}, and so on {i}."
        rows.append(json.dumps({"text": text, "label": label}))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    routing = {"labels": "large", "domain": "off", "guarantee": {"max_error": 0.1}}
    task = {"name": "why", "data": {"train": "rows.jsonl"}, "ladder": ["words"], "routing": routing}
    (folder / "task.yaml").write_text(json.dumps(task), encoding="utf-8")


def proxy(kind: str, tree: Path, home: Path, upstream: int) -> Running:
    """Start the proxy of a checkout in a folder of its own."""
    home.mkdir(parents=True)
    kept = "capture: {}\n" if kind == "capture" else ""
    (home / "gateway.yaml").write_text(SETTINGS.format(upstream=upstream) + kept, encoding="utf-8")
    own = {"PYTHONPATH": str(tree), "SMALLFIRST_HOME": str(home / "state")}
    if kind == "taken over":
        draft(home / "discovered" / "why")
        for line in (["learn", "discovered/why"], ["take-over", "why", "--share", "1"]):
            run = [sys.executable, "-P", "-c", VERB, *line]
            done = subprocess.run(run, cwd=home, env={**os.environ, **own}, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{tree}: {' '.join(line)}\n{done.stdout}\n{done.stderr}")
    port = free_port()
    command = [sys.executable, "-P", "-c", VERB, "proxy", str(home), "--port", str(port)]
    return Running(port, start(bound(command), home / "proxy.log", **own))


def ratio(before: list[float], after: list[float]) -> str:
    """Return the median ratio of the rounds with its 95 % interval."""
    found = quantile_interval([two / one for one, two in zip(before, after, strict=True)], 0.5)
    return f"**{found.value:.3f}** [{found.low:.3f}, {found.high:.3f}]"


def compare(
    kind: str, trees: dict[str, Path], folder: Path, upstream: int, rounds: int, seconds: float
) -> Iterator[str]:
    """Yield the lines of one kind."""
    proxies: dict[str, Running] = {}
    with ExitStack() as running:
        for name, tree in trees.items():
            home = folder / kind.replace(" ", "-") / name
            proxies[name] = one = proxy(kind, tree, home, upstream)
            running.enter_context(stopped(one.process))
            wait_for(one.port, one.process, home)
            while load(one.port, {"clients": 4}, 2)["failed"]:
                pass  # it listens before its models are loaded
        for what, clients in LOADS.items():
            rates: dict[str, list[float]] = {name: [] for name in trees}
            busy: dict[str, list[float]] = {name: [] for name in trees}
            failed = 0
            for number in range(rounds):
                for name in list(trees) if number % 2 == 0 else reversed(trees):
                    busy_s = proxies[name].busy_s()
                    got = load(proxies[name].port, clients, seconds)
                    failed += got["failed"]
                    rates[name].append(got["rate"])
                    busy[name].append((proxies[name].busy_s() - busy_s) / (got["n"] - got["failed"]))
            before, after = (statistics.median(one) for one in rates.values())
            ms = " to ".join(f"{1000 * statistics.median(one):.2f}" for one in busy.values())
            yield (
                f"| {kind} | {what} | {before:,.0f} | {after:,.0f} | {ratio(*rates.values())} | {ms} | "
                f"{ratio(*busy.values())} | {rounds} | {failed} |"
            )


def page(lines: list[str], arguments: argparse.Namespace, others: float) -> str:
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    how = f"--rounds {arguments.rounds} --seconds {arguments.seconds:g}"
    return (
        "# The proxy before and after a change\n\n"
        f"`python -m benchmarks.serving.proxy_versions BEFORE AFTER {how}`, {date.today().isoformat()}, {machine}. "
        "BEFORE let any key, and one client alone, decide over small answers; AFTER asks for a key that the upstream has "
        f"accepted, and watches each client apart. Runnable processes of others: {others:.1f} on average before.\n\n"
        "| proxy | load | answers/s before | after | ratio | CPU ms an answer | ratio | rounds | failed |\n"
        "|---|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
        "Both proxies run at once on one core and are asked in turn; ratios are medians of the rounds with their 95 % "
        "intervals. `taken over`: all but the audits is answered small.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    trees = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
    os.sched_setaffinity(0, {int(SECOND_CORE)})  # inherited by the clients and the upstream
    lines, others = list[str](), waiting()
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "upstream.log"
        upstream = start([sys.executable, "-m", "benchmarks.serving.gateway_upstream"], log)
        with stopped(upstream):
            assert upstream.stdout is not None
            port = int(upstream.stdout.readline())
            for kind in arguments.kinds.split(","):
                for line in compare(kind, trees, Path(name), port, arguments.rounds, arguments.seconds):
                    lines.append(line)
                    print(line, flush=True)
    RESULT.write_text(page(lines, arguments, others), encoding="utf-8")


if __name__ == "__main__":
    main()
