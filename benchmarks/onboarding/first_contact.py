"""Take files that other programs wrote from `init --from` to a served answer with the commands that are printed, and time it.

    python -m benchmarks.onboarding.first_contact FOLDER [--ladder words,encoder] [--only NAME …]

FOLDER is what `benchmarks.onboarding.foreign_files` writes. Each file is copied into an empty folder; there
`smallfirst init my-task --from FILE --yes`, then each printed `smallfirst check`, `run` and `serve`; a row of the file is asked
over HTTP. Nothing is edited in between but, with --ladder, the candidates. Writes benchmarks/results/first_contact.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.paths import RESULTS

RESULT = RESULTS / "first_contact.md"
TASK = "my-task"
COMMAND = (sys.executable, "-m", "smallfirst.cli.main") if not shutil.which("smallfirst") else ("smallfirst",)
SHOWN = ("kind", "data", "labels", "fields", "schema", "about")
"""Settings of task.yaml that say what was guessed."""


class Step(NamedTuple):
    """One command with what it printed."""

    command: str
    exit_code: int
    output: str
    seconds: float


class Outcome(NamedTuple):
    """What became of one file."""

    name: str
    guess: str
    ending: str
    answer: str
    minutes: float | None
    """Minutes of all commands until the first served answer; None without one."""
    log: str


def call(arguments: list[str], folder: Path) -> Step:
    """Run a command of smallfirst in `folder`; at most 30 minutes."""
    began = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800
    )
    output = done.stdout + done.stderr
    return Step(shlex.join(["smallfirst", *arguments]), done.returncode, output, time.monotonic() - began)


def suggested(output: str, verb: str) -> list[str] | None:
    """Return the arguments of the last printed `smallfirst VERB …`, if there is one."""
    found = re.findall(rf"smallfirst ({verb}\b(?: [^\s`#;()]+)*)", output)
    return shlex.split(found[-1]) if found else None


def first_text(folder: Path, task: dict[str, Any]) -> str:
    """Return what the first row of the task asks, as the project reads it."""
    program = "import sys, smallfirst as sf; print(sf.Project.read(sf.read_task_file(sys.argv[1])).rows.test.examples[0].text)"
    done = subprocess.run([sys.executable, "-c", program, TASK], cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or "hello"


def ask(folder: Path, arguments: list[str], task: dict[str, Any]) -> tuple[str, float]:
    """Serve as suggested, ask one row, return the answer with its route, and the seconds that it took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    command = [*COMMAND, *(a for a in arguments if not a.startswith("--port")), "--port", str(port)]
    with tempfile.TemporaryFile("w+") as told:
        server = subprocess.Popen(command, cwd=folder, stdout=told, stderr=subprocess.STDOUT)
        try:
            text = first_text(folder, task)
            body = {"model": task.get("name", TASK), "messages": [{"role": "user", "content": text}]}
            for _ in range(240):
                try:
                    return post(f"http://127.0.0.1:{port}/v1/chat/completions", body), time.monotonic() - began
                except urllib.error.HTTPError as error:
                    if error.code != 503:
                        return f"HTTP {error.code}: {error.read().decode()[:200]}", time.monotonic() - began
                except OSError:
                    if server.poll() is not None:
                        break
                time.sleep(0.5)
            told.seek(0)
            return f"no answer: {told.read()[-300:]}", time.monotonic() - began
        finally:
            server.terminate()
            server.wait(30)


def post(url: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        said = json.load(answer)["choices"][0]["message"]["content"]
        return f"{answer.status}, {answer.headers.get('x-smallfirst-route')}: {said[:80]!r}"


def contact(source: Path, ladder: list[str]) -> Outcome:
    """Take one file to a served answer."""
    folder = Path(tempfile.mkdtemp(prefix="first-contact-"))
    (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)
    steps = [call(["init", TASK, "--from", source.name, "--yes"], folder)]
    file = folder / TASK / "task.yaml"
    if not file.exists():
        return Outcome(source.name, "none", f"init ends with {steps[0].exit_code}", "", None, told(steps))
    task = yaml.safe_load(file.read_text())
    guess = "; ".join(f"{name}: {json.dumps(task[name], ensure_ascii=False)}" for name in SHOWN if name in task)
    if ladder:
        file.write_text(file.read_text() + f"\nladder: [{', '.join(ladder)}]\n")
    for verb in ("check", "run"):
        steps.append(call(suggested(steps[-1].output, verb) or [verb, TASK], folder))
    serve = suggested(steps[-1].output, "serve")
    answer, seconds = ask(folder, serve, task) if serve else ("no serve command was printed", 0.0)
    minutes = (sum(step.seconds for step in steps) + seconds) / 60
    ending = f"check {steps[1].exit_code}, run {steps[2].exit_code}"
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(source.name, guess, ending, answer, minutes if answer.startswith("200") else None, told(steps))


def told(steps: list[Step]) -> str:
    return "\n".join(f"$ {s.command}   [{s.exit_code}, {s.seconds:.0f} s]\n{s.output.strip()[-3500:]}\n" for s in steps)


def page(outcomes: list[Outcome], command: str) -> str:
    """Return the results as Markdown."""
    minutes = sorted(o.minutes for o in outcomes if o.minutes is not None)
    middle = f"median {statistics.median(minutes):.1f}, worst {minutes[-1]:.1f} minutes" if minutes else "no answer"
    lines = [
        "# First contact",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores,",
        f"Python {platform.python_version()}. {len(minutes)} of {len(outcomes)} files reach a served answer: {middle}.",
        "",
        "| file | guess in task.yaml | exit codes | first answer | minutes |",
        "|---|---|---|---|---|",
    ]
    for o in outcomes:
        cells = [o.name, o.guess[:300], o.ending, o.answer, f"{o.minutes:.1f}" if o.minutes is not None else "–"]
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ladder", type=lambda text: text.split(","), default=[])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--log", type=Path, help="Write everything that the commands printed here.")
    args = parser.parse_args()
    outcomes = []
    for source in sorted(args.folder.iterdir()):
        if args.only and source.name not in args.only:
            continue
        outcomes.append(contact(source, args.ladder))
        print(*outcomes[-1][:5], sep=" · ", flush=True)
        if args.log:
            with args.log.open("a") as log:
                log.write(f"## {source.name}\n\n{outcomes[-1].log}\n{outcomes[-1].answer}\n\n")
    options = f" --ladder {','.join(args.ladder)}" if args.ladder else ""
    if not args.only:
        RESULT.write_text(
            page(outcomes, f"python -m benchmarks.onboarding.first_contact FOLDER{options}"), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
