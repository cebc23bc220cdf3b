"""The rows that a task.yaml names, split by what they may be used for, and the task they make.

Splits are by content hash within each label, so the same rows have the same parts whatever the task is called. Labels
or a schema that the file does not give are taken from the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from smallfirst.base.errors import DataError, Problem, did_you_mean
from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.base.records import Record, parse_record
from smallfirst.data.check import Finding, make_finding
from smallfirst.data.conversations import conversations_of
from smallfirst.data.copies import CountedRows, LeakReport, count_rows, find_leaks
from smallfirst.data.dataset import Dataset, Example, Message, fold_text, sample_rows, sample_share, split
from smallfirst.data.families import one_of_each, with_families
from smallfirst.data.redaction import redact
from smallfirst.data.row_formats import ROW_FORMATS, Columns
from smallfirst.data.sources.load import LoadedRows, load_noted, load_rows, note_skipped
from smallfirst.measuring.label_errors import apply_relabels, read_relabels
from smallfirst.path.project.task_file import DataFiles, TaskFile
from smallfirst.tasks import TASK_KINDS
from smallfirst.tasks.task import Task

PARTS = ("train", "selection", "calibration", "test")
"""Parts of the rows that have answers."""
_SELECTION_SALT = "claims-desk"  # any would do; with this one the demo's recorded answers are of its calibration rows
SPLIT_OFF, SPLIT_OFF_ROOT = 0.2, 10.0
"""Of `n` training rows, this share or so many times √n, whichever is fewer, become validation or test rows."""


class Rows(Record):
    """The rows of a task, split by what they may be used for."""

    train: Dataset
    selection: Dataset
    """Rows to choose with: epoch, temperature, out-of-domain threshold."""
    calibration: Dataset
    """Rows to certify with, used for nothing else."""
    test: Dataset
    """Rows to measure with, used once."""
    open_ended: Dataset | None
    """Requests that do not belong to the task, to choose and to certify with."""
    foreign_test: Dataset = Dataset(name="foreign test", examples=())
    """Test rows of `data.out_of_scope_label`, to measure with."""
    left_out: Dataset = Dataset(name="left out", examples=())
    """Calibration rows that do not count, since they repeat a training, selection or other calibration row."""
    relatives: Dataset = Dataset(name="relatives", examples=())
    """Test rows that do not count, since another one of their family does."""
    counted: CountedRows = CountedRows(n_rows=0)
    """How many calibration rows count, and why the others do not."""
    notes: tuple[Finding, ...] = ()
    """What was read otherwise than it stands in the files."""
    skipped: tuple[Finding, ...] = ()
    """Bad rows that were left out, a finding for each file; `data.skip_bad_rows_up_to` allows it."""

    @property
    def development(self) -> Dataset:
        """Training and selection rows: all that a candidate may be fitted on and chosen by."""
        return self.train.subset("development", (*self.train.examples, *self.selection.examples))

    @property
    def held_out(self) -> tuple[Dataset, ...]:
        """The parts that measure, certify or choose; none of their texts may be trained on."""
        parts = (self.test, self.foreign_test, self.calibration, self.left_out, self.selection, self.relatives)
        return parts if self.open_ended is None else (*parts, self.open_ended)


def read_rows(task_file: TaskFile, progress: ProgressCallback = no_progress) -> Rows:
    """Return all rows, split. Raise DataError with every bad row of the first file that has one."""
    files = task_file.data
    kind = TASK_KINDS.get(task_file.kind)
    read_so_far: list[LoadedRows] = []

    def read(path: Path, labels: Sequence[str] | None) -> Dataset:
        share = files.skip_bad_rows_up_to
        if labels is not None and files.out_of_scope_label is not None:
            labels = tuple(dict.fromkeys((*labels, files.out_of_scope_label)))
        found = load_noted(
            path,
            columns=files.columns,
            labels=labels,
            folder=task_file.folder,
            skip_bad_rows_up_to=share,
            progress=progress,
            documents=task_file.path(files.documents) if files.documents else None,
        )
        read_so_far.append(found)
        return with_conversations(found.data)

    train = read(files.train, kind.row_labels(task_file.settings))
    labels = kind.row_labels(task_file.settings, train)
    share = split_off(len(train)) / max(1, len(train))
    wanted = zip(kind.held_out or (share, share), (files.validation, files.test), strict=True)
    shares = [0.0 if file else own for own, file in wanted]
    given = [train, *(read(file, labels) for file in (files.validation, files.test) if file)]
    (train, *others), told = with_families(given)
    parts = split(train, validation=shares[0], test=shares[1])
    validation = others.pop(0) if files.validation else parts.validation
    selection, calibration = sample_share(validation, task_file.routing.selection_share, _SELECTION_SALT)
    test, relatives = one_of_each(others.pop() if files.test else parts.test)
    rows = Rows(
        train=parts.train,
        selection=selection,
        calibration=calibration,
        test=test,
        open_ended=_read_open_ended(task_file),
        relatives=relatives,
        notes=(*(note for found in read_so_far for note in found.notes), *told),
        skipped=tuple(found.skipped for found in read_so_far if found.skipped),
    )
    return rows if files.out_of_scope_label is None else _set_apart(rows, files.out_of_scope_label)


def with_conversations(data: Dataset) -> Dataset:
    """Return the rows, those with function calls in the groups of their conversations where they have none."""
    at = [i for i, example in enumerate(data.examples) if example.shape == "call" and not example.group]
    if not at:
        return data
    groups = dict(zip(at, conversations_of([data.examples[i].text for i in at]), strict=True))
    found = (e.model_copy(update={"group": groups[i]}) if i in groups else e for i, e in enumerate(data.examples))
    return data.subset(data.name, tuple(found))


def split_off(n_rows: float) -> float:
    """Return how many of the training rows become validation rows, or test rows, if there is no file of them.

    A fifth, and from 2,500 rows on 10 √n (1,000 of 10,000): what is measured on them is twice as exact with four times
    as many rows, while a model goes on learning from each.
    """
    return min(SPLIT_OFF * n_rows, SPLIT_OFF_ROOT * math.sqrt(n_rows))


def rows_to_split_off(n_part: float) -> float:
    """Return of how many training rows so many become validation or test rows: the inverse of `split_off`."""
    return max(n_part / SPLIT_OFF, (n_part / SPLIT_OFF_ROOT) ** 2)


def _set_apart(rows: Rows, label: str) -> Rows:
    """Return the rows with those of the label among the foreign ones. Raise DataError if there are none."""
    own, foreign = {}, {}
    for name in PARTS:
        data = getattr(rows, name)
        own[name] = data.subset(data.name, tuple(e for e in data.examples if e.answer != label))
        changed = {"answer": "", "also": (), "shape": "text"}
        foreign[name] = tuple(e.model_copy(update=changed) for e in data.examples if e.answer == label)
    counts = ", ".join(f"{len(found):,} {name}" for name, found in foreign.items() if found)
    if not counts:
        known = rows.train.labels()
        raise DataError(f'data.out_of_scope_label: no row has the label "{label}"{did_you_mean(label, known)}')
    *chosen, test = foreign.values()
    others = rows.open_ended.examples if rows.open_ended else ()
    rule = "requests outside the task: they train nothing, choose and certify what tells them apart, and measure it"
    what = f'{sum(map(len, foreign.values())):,} rows of "{label}" ({counts})'
    note = make_finding("note", what, rule, [example.place for part in foreign.values() for example in part])
    joined = tuple(example for part in (others, *chosen) for example in part)
    apart = {"open_ended": rows.test.subset("foreign", joined) if joined else None}
    apart["foreign_test"] = rows.test.subset("foreign test", test)
    return rows.model_copy(update={**own, **apart, "notes": (*rows.notes, note)})


def read_task(task_file: TaskFile, rows: Rows) -> Task:
    """Return the task of the file. Raise ConfigError if its settings and rows make none."""
    kind = TASK_KINDS.get(task_file.kind)
    settings = kind.complete_settings(task_file.settings, rows.train, (rows.selection, rows.calibration, rows.test))
    about = task_file.about or rows.train.system_message
    values = {"kind": task_file.kind, "name": task_file.name, "about": about, **settings}
    return parse_record(kind, values, where=f"task {task_file.name}")


def with_canonical_answers(rows: Rows, task: Task, files: DataFiles | None = None) -> Rows:
    """Return the rows with answers in the task's canonical form.

    Raise DataError naming each row that has none, unless `files` allows to leave out so many.
    """
    problems: list[Problem] = []

    def canonical(data: Dataset) -> Dataset:
        found, takes_shapes = [], task.row_formats
        for example in data.examples:
            golds = [task.parse(gold) for gold in example.golds]
            if example.shape not in takes_shapes:
                takes = " or ".join(ROW_FORMATS[shape] for shape in task.row_formats)
                rule = f"a row of {ROW_FORMATS[example.shape]}; this task takes {takes}"
                problems.append(Problem(example.path, example.line, rule))
            elif len(example.messages) > 1 and sum(m.role != "system" for m in example.messages) > 1:
                rule = "a conversation of several turns; a task is one question and its answer"
                problems.append(Problem(example.path, example.line, rule))
            elif rule := task.row_rule(example):
                problems.append(Problem(example.path, example.line, rule))
            elif None in golds:
                bad = example.golds[golds.index(None)]
                problems.append(Problem(example.path, example.line, f"no answer of this task: {bad[:80]!r}"))
            else:
                answer, *also = (gold for gold in golds if gold is not None)
                changed = (answer, *also) != example.golds
                found.append(example.model_copy(update={"answer": answer, "also": tuple(also)}) if changed else example)
        return data.subset(data.name, tuple(found))

    parts = {name: canonical(getattr(rows, name)) for name in PARTS}
    n_all = sum(len(getattr(rows, name)) for name in PARTS)
    up_to = files.skip_bad_rows_up_to if files else 0.0
    if len(problems) > up_to * n_all:
        raise DataError(
            f"{len(problems)} rows do not fit the task", problems, hint="correct these lines, or the task's settings"
        )
    skipped = note_skipped(problems, len(problems), n_all - len(problems), up_to, "the task's rows")
    return rows.model_copy(update={**parts, "skipped": (*rows.skipped, *([skipped] if skipped else []))})


def with_relabels(rows: Rows, task_file: TaskFile, task: Task) -> Rows:
    """Return the rows with people's answers to probable label errors.

    Of calibration rows a random part may be judged, the first ones of `sample_rows`: then these alone certify. Raise
    DataError naming every bad line, and if other rows of calibration or test were judged and some not: judged where a
    model disagrees, they would pass its answers as right and keep the labels that are wrong in its favour.
    """
    if task_file.data.relabels is None:
        return rows
    path = task_file.path(task_file.data.relabels)
    judged = frozenset(key for key, _ in read_relabels(path))
    random_part = sample_rows(rows.calibration, sum(e.key in judged for e in rows.calibration.examples))
    if random_part.examples and all(e.key in judged for e in random_part.examples):
        rows = rows.model_copy(update={"calibration": random_part})
    for name in ("calibration", "test"):
        part = getattr(rows, name).examples
        own = [example for example in part if example.key in judged]
        if 0 < len(own) < len(part):
            raise DataError(
                f"{path} answers {len(own)} of {len(part)} {name} rows, which would shift what they measure",
                [Problem(e.path, e.line, f"a {name} row") for e in own],
                hint=f"remove these lines, or judge every {name} row, or a random part of the calibration rows: "
                "smallfirst review --labels FILE --random 200",
            )
    whole = rows.train.subset("rows", tuple(e for name in PARTS for e in getattr(rows, name).examples))
    relabelled = iter(apply_relabels(whole, path, labels=task.closed or None).examples)
    # The same number of rows in the same order: each part takes its own back.
    parts = {}
    for name in PARTS:
        data = getattr(rows, name)
        parts[name] = data.subset(data.name, tuple(next(relabelled) for _ in data.examples))
    return rows.model_copy(update=parts)


def with_harvested(rows: Rows, path: Path, *, columns: Columns, labels: Sequence[str]) -> Rows:
    """Return the rows with those of `path` added to the training rows.

    A text that is in the training rows already is left out. `labels` are the allowed answers of rows with one label. A
    text that was served may be in the held-out rows as well, perhaps redacted: raise DataError naming every such row,
    and every bad row.
    """
    own = rows.train.examples
    allowed = labels if own and own[0].shape == "label" else None
    new = load_rows(path, columns=columns.model_copy(update={"group": ""}), labels=allowed)
    if leaked := find_held_out_leaks(rows, new).keys:
        raise DataError(
            f"{path}: {len(leaked):,} rows ask what test, calibration, selection or open-ended rows ask",
            [Problem(e.path, e.line, "a held-out text, or nearly one") for e in new.examples if e.key in leaked],
            hint="harvest again (smallfirst harvest task.yaml), or remove these lines",
        )
    known = {fold_text(e.asked) for e in own}
    added = tuple(e for e in new.examples if fold_text(e.asked) not in known)
    return rows.model_copy(update={"train": rows.train.subset(rows.train.name, (*own, *added))})


def find_held_out_leaks(rows: Rows, new: Dataset) -> LeakReport:
    """Find the rows of `new` that ask what a held-out row asks, exactly or nearly, redacted or not."""
    return find_leaks(Dataset(name="held out", examples=tuple(_held_out_texts(rows))), new)


def _held_out_texts(rows: Rows) -> Iterator[Example]:
    """Yield every held-out row, and a redacted copy of those that hold personal data."""
    for data in rows.held_out:
        for example in data.examples:
            yield example
            redacted = redact(example.asked)
            if redacted.counts:
                messages = (Message(role="user", content=redacted.text),)
                yield Example(messages=messages, answer="", shape="text", path=example.path, line=example.line)


def with_independent_calibration(rows: Rows) -> Rows:
    """Return the rows without the calibration rows that are no independent observations of unseen requests.

    A row that stands in the training or selection rows as well stays there.
    """
    calibration, counted = count_rows((rows.train, rows.selection), rows.calibration)
    kept = {id(example) for example in calibration.examples}
    others = tuple(example for example in rows.calibration.examples if id(example) not in kept)
    left_out = rows.left_out.subset("left out", others)
    return rows.model_copy(update={"calibration": calibration, "left_out": left_out, "counted": counted})


def _read_open_ended(task_file: TaskFile) -> Dataset | None:
    if task_file.data.open_ended is None:
        return None
    columns = task_file.data.columns.model_copy(update={"text": "prompt", "prompt": "-", "group": ""})
    read = load_rows(task_file.data.open_ended, columns=columns, folder=task_file.folder)
    examples = tuple(
        Example(messages=(Message(role="user", content=e.answer),), answer="", shape="text", path=e.path, line=e.line)
        for e in read.examples
    )
    return read.subset(read.name, examples)
