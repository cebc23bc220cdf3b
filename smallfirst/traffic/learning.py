"""Learn a discovered task from the large model's recorded answers, and from people's corrections where there are some.

Without corrections right is what the large model answered, so the certificate promises agreement with it. With enough
of them a part trains beside the recorded answers, and the rest certifies and tests: then it promises accuracy. What
judges marked of answers that were served trains in both cases and measures in none: it is no random sample.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scipy.stats import fisher_exact

import smallfirst
from smallfirst.base.errors import ConfigError, GateFailed
from smallfirst.base.files import write_atomically
from smallfirst.base.paths import state_of
from smallfirst.base.progress import Progress
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, ratio_interval
from smallfirst.base.sync import outside_event_loop
from smallfirst.data.dataset import Example, fold_text
from smallfirst.data.sources.load import load_rows
from smallfirst.measuring.data_issues import SINGLE_ROWS, find_issues
from smallfirst.measuring.evaluate import EvaluatedRow
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import RecordedAnswer, RecordingHeader, request_key
from smallfirst.path.diagnostics import AGREEMENT, recorded_row
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.settlements import REVIEW, read_settlements, renamed, text_key
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.run import try_run
from smallfirst.path.summary import RunSummary
from smallfirst.registry.versions import SHADOW
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.traffic.harvest import harvest, open_ledger
from smallfirst.traffic.settings import settings_near
from smallfirst.traffic.task_source import LEARNT, SECOND_LOOK_AFTER, TakeOver, TakeOvers, TaskSource, Teacher

CORRECTIONS = "corrections.jsonl"
"""File of people's right answers in the task's folder, in the columns of its rows."""
MIN_CORRECTIONS = 200
"""Fewer corrections than this only train: they could hardly certify anything."""
_RECORDED = "recorded.jsonl"
_MARKED = "marked.jsonl"
_PARTS = (("train", 0.6), ("validation", 0.85), ("test", 1.0))
"""What corrections are used for, with the upper end of each part of [0, 1) into which a text's hash falls."""


class Learnt(Record):
    """What was learnt of a task."""

    task: str
    n_rows: int
    """Recorded answers."""
    n_corrections: int
    n_marked: int = 0
    """Rows more that judges marked as the task was served; they train."""
    promises_accuracy: bool
    """True if people's answers certify; False if the certificate promises agreement with the large model."""
    version: int
    promise: str
    """With what it calls right; empty while nothing is promised."""
    why: str = ""
    """Why nothing is; empty where something is."""
    second_look_after: int | None = None
    """Texts in shadow after which the certificate is looked for once more."""
    share: float
    """Share of the test rows that stayed small."""
    counted: str = "rows"
    """What of the test rows that share is of."""
    differ: Estimate | None = None
    """Share of the kept test requests whose answer differs, each text weighing as many as asked it; None without."""
    limit: float = 1.0
    """Share of kept texts that may differ, as promised."""
    report: str

    @property
    def in_words(self) -> tuple[str, ...]:
        of = f", {self.n_corrections} of them corrected by people" if self.n_corrections else ""
        of += f", and from {self.n_marked:,} that judges marked as it was served" if self.n_marked else ""
        look = f"the second look comes by itself, after {self.second_look_after or 0:,} texts there"
        stays = f"{self.share:.0%} of the test {self.counted} stay small" if self.promise else "nothing stays small yet"
        return (
            f"{self.task}: learnt from {self.n_rows:,} recorded answers{of}",
            f"promise: {self.promise or f'none yet: {self.why}'}",
            f"{stays}; report: {self.report}",
            *([_requests_in_words(self.differ, self.limit)] if self.differ else []),
            "in shadow: the large model answers, and the small one is compared with it",
            *([look] if self.second_look_after is not None else []),
        )


class _LearntRow(NamedTuple):
    example: Example
    values: dict[str, Any]
    """The line that it was read from."""

    @property
    def key(self) -> str:
        return fold_text(self.example.asked)


def learn(
    folder: Path, *, progress: Progress | None = None, minutes: float | None = None, takeovers: TakeOvers | None = None
) -> Learnt:
    """Train, measure and certify the task that was drafted in `folder`, and put it in shadow.

    Raise ConfigError if it did not come from traffic or its teacher's terms forbid it; GateFailed if no part of its
    requests can be promised.
    """
    folder = folder.absolute()
    source = read_source(folder)
    drafted = read_task_file(folder)
    rows = [row for path in _files(drafted).values() for row in _read(path, drafted)]
    said = _read(folder / CORRECTIONS, drafted) if (folder / CORRECTIONS).exists() else []
    corrections = {row.key: row for row in said}
    place = folder / LEARNT
    settlements = read_settlements(folder)
    recorded = [row._replace(example=renamed(row.example, settlements)) for row in rows]
    _write_recording(place / _RECORDED, recorded, source.teacher)
    write_atomically(place / REVIEW, (folder / REVIEW).read_bytes() if settlements else b"")
    corrected = [row for row in rows if row.key in corrections]
    chosen = len(corrected) >= MIN_CORRECTIONS and favours_doubtful_rows(rows, corrections)
    accuracy = len(corrected) >= MIN_CORRECTIONS and not chosen
    if not source.teacher.training_allowed:
        _check_terms(source, len(corrected))
        rows = corrected
    files = _write_parts(place, drafted, rows, corrections, accuracy=accuracy)
    named = [row.example.answer for row in corrections.values() if row.example.shape == "label"]
    _write_task(place, folder, files, labels="gold" if accuracy else "large", named=named, minutes=minutes)
    n_marked = _add_marked(place)
    summary = _run(place, progress, minutes)
    certificate, routed = summary.certificate, summary.paths.get("routed")
    assert certificate is not None  # else the run has ended with an error
    version = _version(summary)
    promise, differ, limit = "", None, 1.0
    if certificate.issued:
        promise = _promise(certificate, accuracy=accuracy, chosen=chosen)
        limit = certificate.guarantee.max_error or 1.0
        differ = _measured_by_requests(summary, rows)
    learnt = Learnt(
        task=source.name,
        n_rows=len(rows),
        n_corrections=len(corrected),
        n_marked=n_marked,
        promises_accuracy=accuracy,
        version=version,
        promise=promise,
        why="" if certificate.issued else certificate.report.why,
        second_look_after=read_task_file(place).routing.second_look_after,
        share=routed.share if routed and certificate.issued else 0.0,
        counted="calls" if summary.outcome and summary.outcome.counted == "calls" else "rows",
        differ=differ,
        limit=limit,
        report=summary.report,
    )
    file = takeovers or TakeOvers()
    before = file.read().get(source.name) or TakeOver(task=source.name, folder=folder)
    new = {"folder": folder, "version": version, "promise": promise, "certificate": "", "second_look": ""}
    why = "learnt; the small model is compared with the large one before it answers"
    file.put(before.model_copy(update=new).moved("shadow", cause="person", why=why, share=0.0))
    return learnt


def _promise(certificate: Certificate, *, accuracy: bool, chosen: bool) -> str:
    """Return what is promised, by whose answers, and what may be wrong with them; `chosen`: people's were no sample."""
    right = "right is what people answered" if accuracy else "right is what the large model answered"
    doubt = [line for line in certificate.report.rests_on if line.startswith(AGREEMENT)]
    doubt += ["people corrected doubtful rows first, which is no random sample, so their answers only train"] * chosen
    return "; ".join([certificate.guarantee.in_words, right, *doubt])


def read_source(folder: Path) -> TaskSource:
    """Return where a task was found, with its teacher's terms as the settings give them now. Raise ConfigError."""
    source = TaskSource.of(folder)
    if source is None:
        raise ConfigError(
            f"{folder} holds no task that was found in traffic: it has no source.json",
            hint="smallfirst discover   drafts such folders; smallfirst run task.yaml   learns any other task",
        )
    settings = settings_near(folder)  # its terms may have been written after `discover`
    teacher = settings.teacher_of(source.teacher.model, *source.models) if settings else source.teacher
    known = teacher.licence or not teacher.training_allowed
    return source.model_copy(update={"teacher": teacher}) if known else source


def _check_terms(source: TaskSource, n_corrections: int) -> None:
    """Raise ConfigError unless people's answers are enough to learn from without the teacher's."""
    if n_corrections < MIN_CORRECTIONS:
        licence = source.teacher.licence or "as the settings say"
        raise ConfigError(
            f"{source.name}: the terms of {source.teacher.model} forbid training on its answers ({licence}), so they "
            f"are used for measuring only, and people have answered {n_corrections:,} of its rows",
            hint=f"put people's answers to at least {MIN_CORRECTIONS} rows into {CORRECTIONS} beside source.json",
        )


def favours_doubtful_rows(rows: Sequence[_LearntRow], corrections: Mapping[str, _LearntRow]) -> bool:
    """Return True if people answered doubtful rows far more often than others: they measure nothing then (Fisher, 1 %).

    Corrected where models disagree, and left alone where they repeat a wrong answer, rows would flatter every model.
    """
    issues = find_issues([recorded_row(row.example) for row in rows])
    doubtful = {key for issue in issues if issue.kind in SINGLE_ROWS for key in issue.keys}
    table = [[0, 0], [0, 0]]
    for row in rows:
        table[text_key(row.example) not in doubtful][row.key not in corrections] += 1
    return bool(fisher_exact(table, alternative="greater")[1] < 0.01)


def _add_marked(place: Path) -> int:
    """Let what judges marked in the ledger train as well; return the number of rows."""
    file = read_task_file(place)
    with state_of(place):
        try:
            open_ledger().close()
        except ConfigError:  # nothing was served yet
            return 0
        found = harvest(Project.read(file, Progress(quiet=True)), out=place / _MARKED, people_only=True)
    if found.n_rows:
        values = yaml.safe_load((place / "task.yaml").read_text(encoding="utf-8"))
        values["data"]["harvested"] = [*values["data"].get("harvested", []), _MARKED]
        _write_settings(place, values)
    return found.n_rows


def _run(place: Path, progress: Progress | None, minutes: float | None) -> RunSummary:
    """Run the whole path; say in the words of a take-over what is missing if nothing can be promised.

    That is no error where the version drafts in shadow until a second look.
    """
    file = read_task_file(place)
    file = file if minutes is None else file.with_minutes(minutes)
    summary, error = outside_event_loop(lambda: try_run(file, task=str(place), progress=progress))
    drafts = summary.outcome is not None and summary.outcome.alias == SHADOW
    if isinstance(error, GateFailed) and not drafts:
        why = summary.certificate.report.why if summary.certificate else error.args[0]
        raise GateFailed(
            f"{file.name}: nothing can be promised yet: {why}", hint=f"more traffic; read {summary.report}"
        )
    if error is not None and not drafts:
        raise error
    return summary


def _version(summary: RunSummary) -> int:
    found = summary.promoted or summary.outcome
    assert found is not None
    assert found.version is not None
    return found.version


def _measured_by_requests(summary: RunSummary, rows: Sequence[_LearntRow]) -> Estimate | None:
    routed = RunFolder(Path(summary.report).parent).evaluation("routed", "test")
    asked = {row.key: int(row.values.get("n", 1)) for row in rows}
    return requests_that_differ(routed.rows, asked) if routed else None


def requests_that_differ(routed: Sequence[EvaluatedRow], asked: Mapping[str, int]) -> Estimate | None:
    """Return the share of the requests whose certified answer differs; `asked`: by folded text how often it was."""
    kept = [(not row.correct, asked.get(fold_text(row.text), 1)) for row in routed if row.certified]
    return ratio_interval([wrong * n for wrong, n in kept], [n for _, n in kept]) if kept else None


def _requests_in_words(differ: Estimate, limit: float) -> str:
    more = "; more than promised of texts, as frequent ones are answered worse: begin with a small share"
    return (
        f"counted by requests, {differ.value:.1%} [{max(0.0, differ.low):.1%}, {min(1.0, differ.high):.1%}] of "
        f"{differ.n:,} kept test requests differ: measured, not promised{more if differ.value > limit else ''}"
    )


def _files(drafted: TaskFile) -> dict[str, Path]:
    """Return the draft's files of rows by what they are used for."""
    data = drafted.data
    given = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: drafted.path(path) for name, path in given.items() if path is not None}


def _read(path: Path, drafted: TaskFile) -> list[_LearntRow]:
    lines = path.read_text(encoding="utf-8").split("\n")
    examples = load_rows(path, columns=drafted.data.columns, folder=drafted.folder).examples
    return [_LearntRow(example, json.loads(lines[example.line - 1])) for example in examples]


def _write_recording(path: Path, rows: Sequence[_LearntRow], teacher: Teacher) -> None:
    """Write the recorded answers with their bills, so that the large model is measured without being asked again."""
    answers = {}
    for row in rows:
        request = Request(messages=row.example.messages)
        measured = {name: row.values.get(name) or 0 for name in ("prompt_tokens", "completion_tokens", "latency_ms")}
        answer = RecordedAnswer(
            key=request_key(request),
            text=row.example.text,
            answer=row.example.answer,
            cost_usd=row.values.get("cost_usd") or 0.0,
            **measured,
        )
        answers[answer.key] = answer
    header = RecordingHeader(
        model=teacher.model,
        made_at=datetime.now(UTC).date().isoformat(),
        smallfirst=smallfirst.__version__,
        command="smallfirst learn",
        prompt="as the application asked",
        n=len(answers),
    )
    lines = [json.dumps({"recorded": header.model_dump(mode="json")}), *(a.model_dump_json() for a in answers.values())]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _write_parts(
    place: Path, drafted: TaskFile, rows: Sequence[_LearntRow], corrections: Mapping[str, _LearntRow], *, accuracy: bool
) -> dict[str, str]:
    """Write the rows by what they are used for; return the files of `data` by name, relative to `place`."""
    if not corrections:
        return {name: os.path.relpath(path, place) for name, path in _files(drafted).items()}
    if not accuracy:
        for name, path in _files(drafted).items():
            # Without enough of them the promise is agreement: what certifies and tests stays as it was recorded.
            said = corrections if name == "train" else {}
            _write_lines(place / f"{name}.jsonl", [said.get(row.key, row).values for row in _read(path, drafted)])
        return {name: f"{name}.jsonl" for name in _files(drafted)}
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in _PARTS}
    for row in rows:
        if row.key in corrections:
            parts[_part(row.example.group or row.key)].append(corrections[row.key].values)
    parts["train"] += [row.values for row in rows if row.key not in corrections]
    for name, lines in parts.items():
        _write_lines(place / f"{name}.jsonl", lines)
    return {name: f"{name}.jsonl" for name in parts}


def _part(key: str) -> str:
    """Return what a correction is used for: the same text or group always for the same."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48
    return next(name for name, end in _PARTS if place < end)


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _write_task(
    place: Path, folder: Path, files: Mapping[str, str], *, labels: str, named: Sequence[str], minutes: float | None
) -> None:
    """Write the task.yaml of what is learnt: the drafted one with these rows, the recorded answers as large model.

    With `minutes` the run chooses the candidate: the drafted one may not end in that time.
    """
    values = yaml.safe_load((folder / "task.yaml").read_text(encoding="utf-8"))
    kept = {
        name: value for name, value in values.get("data", {}).items() if name not in ("train", "validation", "test")
    }
    changes: dict[str, Any] = {
        "data": {**kept, **files},
        "large": {"recorded": _RECORDED},
        # Only what a certificate covers is answered small, so no candidate goes live alone: plans are tried in order.
        "gate": {**(values.get("gate") or {}), "accuracy_at_least": 1.0},
        "routing": {**(values.get("routing") or {}), "labels": labels},
    }
    if minutes is not None:
        changes["routing"].pop("small", None)
    if labels == "large" and not read_task_file(folder).why_no_second_look:
        changes["routing"].setdefault("second_look_after", SECOND_LOOK_AFTER)
    else:
        changes["routing"].pop("second_look_after", None)
    if isinstance(values.get("tools"), str):
        changes["tools"] = os.path.relpath(folder / values["tools"], place)
    if isinstance(values.get("labels"), list):  # people may name one that the large model never did
        changes["labels"] = list(dict.fromkeys([*values["labels"], *named]))
    _write_settings(place, {**values, **changes})


def _write_settings(place: Path, values: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    note = f"# Written by `smallfirst learn` from ../task.yaml: change that one.\n\n{text}"
    write_atomically(place / "task.yaml", note.encode())
