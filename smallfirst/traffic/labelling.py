"""Label rows with a large model under a cost cap and keep the confident answers as training rows.

Answers are recorded as they arrive, so nothing is paid for twice, and a run that was stopped goes on where it ended.
Rows that measure the teacher are asked first, so that labels have an accuracy if the cap ends a run.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic

import smallfirst
from smallfirst.base.errors import BadAnswer, ConfigError, DataError, SpendingLimitReached
from smallfirst.base.files import try_lock
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.base.records import Record, fingerprint
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.base.stats.sample_size import min_rows_without_error
from smallfirst.data.copies import find_leaks
from smallfirst.data.dataset import Dataset, Example, Message, RowFormat, fold_text, sample_rows
from smallfirst.data.row_formats import ROW_FORMATS, Columns, to_row
from smallfirst.data.sources.load import load_valid
from smallfirst.ledger.expenses import note_recording
from smallfirst.models.few_shot import fixed_shots
from smallfirst.models.protocol import Model, Request
from smallfirst.models.recorded import RecordedAnswer, Spending, SpendingCap, read_recording, record, request_key
from smallfirst.path.large_model import GGUF_AT_ONCE, prompted_model, worst_usd
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import Rows
from smallfirst.path.project.task_file import TaskFile
from smallfirst.tasks.task import Task
from smallfirst.traffic.harvest import RowsRecord, refuse_to_overwrite, write_rows

Fate = Literal["kept", "unsure", "unparseable", "unanswered"]


class LabelOptions(Record):
    """How rows are labelled."""

    out: Path = Path("labelled.jsonl")
    """File of the training rows; the record is written beside it as `<name>.labels.json`."""
    cap_usd: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """Most that the answers to these rows may cost in all, in USD, those of earlier runs included. None: no limit."""
    yes: bool = False
    """Accept the cost; not needed with a cap, or if labelling costs nothing."""
    min_confidence: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Least confidence of an answer that becomes a training row, in [0, 1]; 0 keeps every answer."""
    check_rows: int = pydantic.Field(default=50, ge=0)
    """Most selection rows to ask, to measure the teacher."""

    @property
    def record_path(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.labels.json")


class TeacherAgreement(Record):
    """Agreement of a teacher with the answers of selection rows; None where it was not asked."""

    accuracy: Estimate | None = None
    """Share of rows on which it is right, Wilson interval; no answer is wrong."""
    confident_accuracy: Estimate | None = None
    """Share of right answers among its confident ones: the accuracy to expect of the training file."""
    with_itself: bool = False
    """Its own answers stand in the rows, so that it was asked a second time."""

    @property
    def in_words(self) -> list[str]:
        if self.accuracy is None or self.confident_accuracy is None:
            return []
        if self.with_itself:
            again, most = f"{self.accuracy} of {self.accuracy.n} rows", math.sqrt(self.accuracy.high)
            people = f"{min_rows_without_error(0.05, 0.05)} judgements without an error show at most 5 % wrong"
            return [
                f"asked again it gives the recorded answer on {again}; no model agrees with it on more than {most:.3f}",
                f"people's answers promise accuracy: {people}, 30 more for each error: smallfirst review TASK --labels",
            ]
        return [
            f"it is right on {self.accuracy} of {self.accuracy.n} selection rows; "
            f"where it was confident, on {self.confident_accuracy} of {self.confident_accuracy.n}"
        ]


class LabellingResult(RowsRecord):
    """The record of a labelling: teacher, rows, cost, and how accurate the teacher is."""

    task: str
    teacher: str
    made_at: str
    """Date of this run in UTC, YYYY-MM-DD."""
    texts: str
    options: LabelOptions
    refused: dict[str, int]
    """Rows that may not be labelled, by reason; each is counted once, under the first that applies."""
    counts: dict[Fate, int]
    """Outcomes of the rows that may be labelled. `unanswered`: the next run asks them."""
    trust: TeacherAgreement
    paid_usd: float
    """Cost of all answers to these rows, including earlier runs."""
    stopped: str = ""
    """Why it stopped early and how to continue; empty if it finished."""

    @property
    def in_words(self) -> list[str]:
        n = Counter(self.counts)
        return [
            f"{n['kept']:,} rows labelled by {self.teacher} in {self.options.out}; left out: {n['unsure']:,} unsure, "
            f"{n['unparseable']:,} unparseable, {n['unanswered']:,} without an answer",
            f"{n.total():,} rows could be labelled{_listed(self.refused)}",
            f"paid ${self.paid_usd:.4f} for all answers to these rows",
            *self.trust.in_words,
            *filter(None, [self.stopped]),
        ]


class Labeller(NamedTuple):
    """A model that labels."""

    model: Model
    """Answers a text as the task wants it; adds the task's prompt itself."""
    fingerprint: str
    """Of all that decides on its answers but the text: model, prompt and settings."""
    worst_usd: Callable[[str], float]
    """Most that one answer to this text may cost."""
    max_concurrency: int = 1


def label(
    file: TaskFile,
    texts: Path,
    *,
    options: LabelOptions | None = None,
    progress: Progress | None = None,
    teacher: Labeller | None = None,
) -> LabellingResult:
    """Label the rows of `texts`, write the training rows and return the record.

    `teacher` replaces the large model of the task file. Raise ConfigError if there is no teacher, or if labelling costs
    money and neither a cap nor `yes` is given; DataError for bad rows; ModelError if the model fails. What was answered
    by then is kept.
    """
    options, project = options or LabelOptions(), Project.read(file, progress)
    earlier = LabellingResult.load(options.record_path) if options.record_path.exists() else None
    refuse_to_overwrite(project, options.out, earlier, inputs=(texts,))
    teacher = teacher or large_model_teacher(project)
    read = read_texts(texts, project.rows.train.examples[0].shape, file.data.columns)
    left, refused = filter_texts(read, project.rows)
    filtered = f"{len(left):,} of {len(read):,} rows may be labelled{_listed(refused)}"
    project.progress.log(filtered)
    if not left.examples:
        raise DataError(f"{texts}: {filtered}", hint="give rows that the task does not have yet")
    check = sample_rows(project.rows.selection, options.check_rows)
    max_tokens = project.task.max_answer_tokens
    asked = {e.text: Request.ask(e.text, max_tokens=max_tokens) for e in (*check.examples, *left.examples)}
    path = home() / "labels" / file.name / f"{teacher.fingerprint}.jsonl"
    stopped = _ask(project, teacher, asked, path, options)
    answers = _answers(path, asked)
    outcomes = [_outcome(e, answers.get(e.text), project.task, options.min_confidence) for e in left.examples]
    checked = [_outcome(e, answers.get(e.text), project.task, options.min_confidence) for e in check.examples]
    result = LabellingResult(
        task=file.name,
        teacher=teacher.model.name,
        made_at=_today(),
        texts=str(texts),
        options=options,
        refused=refused,
        counts=dict(Counter(one.fate for one in outcomes)),
        trust=agreement_with_people(checked, project.task),
        paid_usd=sum(answer.cost_usd for answer in answers.values()),
        stopped=stopped,
    )
    kept = [one for one in outcomes if one.fate == "kept"]
    rows = [_training_row(one, file.data.columns, teacher.model.name) for one in kept]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write_rows(options.out, content, result, options.record_path)


# Who labels


def large_model_teacher(project: Project) -> Labeller:
    """Return the large model of the task file with its prompt.

    Raise ConfigError if none is named or only recorded answers are, PriceUnknown if its answers have no price.
    """
    file, task, train = project.file, project.task, project.rows.train
    model, large = prompted_model(file, task, train), file.large
    assert large is not None  # else prompted_model raises
    shots = () if large.nearest else fixed_shots(train, task, large.shots_per_label)
    endpoint = large.endpoint
    decides = [
        model.name,
        large.model_dump(mode="json", include={"gguf", "engine", "nearest", "only_labels"}),
        endpoint and endpoint.model_dump(mode="json", include={"base_url", "extra_body"}),
        [message.model_dump() for message in task.instructions(shots)],
        [train.content_fingerprint, file.small.encoder] if large.nearest else None,
        task.answer_schema(),
        task.max_answer_tokens,
    ]
    at_once = endpoint.max_concurrency if endpoint else GGUF_AT_ONCE
    return Labeller(model, fingerprint(decides), worst_usd(file, model), at_once)


# Which rows


def read_texts(path: Path, shape: RowFormat, columns: Columns) -> Dataset:
    """Read the texts of a file as rows of `shape` without an answer.

    The text is in the text column, or in that of questions or prompts, perhaps beside a context. Raise DataError naming
    bad rows, or rows with answers.
    """
    data, problems = load_valid(path, columns=columns)
    if not data.examples:  # no row is a text alone, so each may be a question: it is read as its own answer
        asked = {"question": columns.question, "prompt": columns.prompt}.get(shape, columns.text)
        names = Columns(question=asked, answer=asked, context=columns.context, text="-", prompt="-")
        data, problems = load_valid(path, columns=names)
    elif data.examples[0].shape != "text":
        raise DataError(
            f"{path}: its rows have answers already ({ROW_FORMATS[data.examples[0].shape]})",
            hint="name the file as data.train; or remove the answers to label the rows again",
        )
    if problems:
        raise DataError(
            f"{path}: {len({p.line for p in problems}):,} rows are no text without an answer",
            problems,
            hint='one text a row, such as {"text": "…"}; map other names with data.columns in task.yaml',
        )
    examples = (
        Example(
            messages=(Message(role="user", content=e.text or e.answer),),
            answer="",
            shape=shape,
            path=e.path,
            line=e.line,
        )
        for e in data.examples
    )
    return data.subset(data.name, tuple(examples))


def filter_texts(texts: Dataset, rows: Rows) -> tuple[Dataset, dict[str, int]]:
    """Return the texts that may be labelled, in file order, and the numbers of the others by reason.

    No teacher's answer measures anything: a split leaves rows that a model labelled in training.
    """
    once = {fold_text(e.asked): e for e in reversed(texts.examples)}
    first = tuple(e for e in texts.examples if once[fold_text(e.asked)] is e)
    held_out = Dataset(name="held out", examples=tuple(e for part in rows.held_out for e in part.examples))
    leaked = find_leaks(held_out, texts.subset(texts.name, first)).keys
    unseen = [e for e in first if e.key not in leaked]
    known = {fold_text(e.asked) for e in rows.train.examples}
    new = tuple(e for e in unseen if fold_text(e.asked) not in known)
    return texts.subset(texts.name, new), {
        "repeated": len(texts) - len(first),
        "equal or nearly equal to held-out rows": len(first) - len(unseen),
        "training rows already": len(unseen) - len(new),
    }


def _listed(refused: Mapping[str, int]) -> str:
    said = ", ".join(f"{n:,} {why}" for why, n in refused.items() if n)
    return f" ({said})" if said else ""


# Asking


def _ask(project: Project, teacher: Labeller, asked: dict[str, Request], path: Path, options: LabelOptions) -> str:
    """Ask what the recording at `path` lacks, as far as cap and consent go; return why it stopped early, if it did."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = try_lock(path.with_suffix(".lock"))
    if lock is None:
        raise ConfigError(
            f"{path} is in use: another run is labelling with the same teacher and prompt",
            hint="wait for it to end; together the two could exceed the cap",
        )
    try:
        return asyncio.run(_ask_in_turn(project, teacher, asked, path, options))
    finally:
        os.close(lock)
        note_recording(project.file.name, "labelling", path)


async def _ask_in_turn(
    project: Project, teacher: Labeller, asked: dict[str, Request], path: Path, options: LabelOptions
) -> str:
    header = {"made_at": _today(), "smallfirst": smallfirst.__version__, "command": "smallfirst label"}
    await record(teacher.model, (), path, header=header)  # drops a row that a killed run was writing
    known = _answers(path, asked)
    missing = [request for text, request in asked.items() if text not in known]
    _need_consent(teacher, missing, options)
    cap = SpendingCap(options.cap_usd, sum(answer.cost_usd for answer in known.values()))
    try:
        with project.progress.bar(f"asking {teacher.model.name}", len(asked), "answers") as update:
            await record(
                teacher.model,
                list(asked.values()),
                path,
                header=header,
                concurrency=teacher.max_concurrency,
                progress=update,
                spending=Spending(cap, teacher.worst_usd),
            )
    except BadAnswer:  # such rows are counted, and asked again by the next run
        if not _answers(path, asked):
            raise
    except SpendingLimitReached:
        n_left = len(asked) - len(_answers(path, asked))
        return (
            f"stopped at the cap of ${options.cap_usd:g}, earlier runs included: {n_left:,} answers are missing; run "
            "again with a higher --cap-usd: nothing is paid twice"
        )
    finally:
        await teacher.model.aclose()
    return ""


def _need_consent(teacher: Labeller, missing: Sequence[Request], options: LabelOptions) -> None:
    usd = sum(teacher.worst_usd(request.text) for request in missing)
    if usd > 0 and options.cap_usd is None and not options.yes:
        raise ConfigError(
            f"labelling costs money and needs consent: {len(missing):,} answers to ask, ${usd:.2g} at most",
            hint=f"add --yes, or a limit: --cap-usd {usd:.2g}",
        )


# What became of them


class LabelOutcome(NamedTuple):
    """What became of one row."""

    example: Example
    fate: Fate
    answer: str | None = None
    confidence: float | None = None


def _outcome(example: Example, answer: RecordedAnswer | None, task: Task, min_confidence: float) -> LabelOutcome:
    """Return what became of a row; an answer is kept from that confidence on, at 0 also one without."""
    if answer is None:
        return LabelOutcome(example, "unanswered")
    # Open text that was cut off is no answer; a label or complete JSON before the cut is one.
    is_cut = answer.finish_reason == "length" and not task.closed and task.answer_schema() is None
    said = None if is_cut else task.parse(answer.answer)
    if said is None:
        return LabelOutcome(example, "unparseable")
    is_sure = min_confidence <= 0 or (answer.confidence is not None and answer.confidence >= min_confidence)
    return LabelOutcome(example, "kept" if is_sure else "unsure", said, answer.confidence)


def agreement_with_people(outcomes: Sequence[LabelOutcome], task: Task) -> TeacherAgreement:
    """Return how often a teacher gives a right answer of people, over the rows that it was asked; empty without any."""
    asked = [one for one in outcomes if one.fate != "unanswered"]
    if not asked:
        return TeacherAgreement()
    right = [task.score(one.example.golds, one.answer) >= task.pass_score for one in asked]
    sure = [ok for one, ok in zip(asked, right, strict=True) if one.fate == "kept"]
    accuracy, confident = wilson(sum(right), len(right)), wilson(sum(sure), len(sure))
    again = all(one.example.source for one in asked)
    return TeacherAgreement(accuracy=accuracy, confident_accuracy=confident, with_itself=again)


def _training_row(one: LabelOutcome, columns: Columns, teacher: str) -> dict[str, Any]:
    """Return the row in the task's format and column names, with teacher, confidence and date beside it."""
    answered = to_row(one.example.model_copy(update={"answer": one.answer}))
    row = {getattr(columns, field): value for field, value in answered.items()}
    source = {"teacher": teacher, "confidence": one.confidence, "labelled_on": _today()}
    return row | source | row  # a row's own values win


def _answers(path: Path, asked: dict[str, Request]) -> dict[str, RecordedAnswer]:
    by_key = {answer.key: answer for answer in read_recording(path)[1]}
    found = {text: by_key.get(request_key(request)) for text, request in asked.items()}
    return {text: answer for text, answer in found.items() if answer is not None}


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
