"""What the ledger teaches, whom it believes, and what never becomes a training row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.progress import Progress
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import with_harvested
from smallfirst.path.project.task_file import read_task_file
from smallfirst.traffic.harvest import HarvestResult, harvest, record_path

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
WORDS = ("one", "two", "three", "four", "five")
TRAIN = {
    "where is my card": "card_arrival",
    "money back for the kettle": "refund_request",
    "I lost the pin": "lost_pin",
}


def write(path: Path, rows: dict[str, str]) -> None:
    path.write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in rows.items()), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    write(tmp_path / "train.jsonl", TRAIN)
    calibration = {f"calibrating text {word} about cards": "card_arrival" for word in WORDS}
    write(tmp_path / "validation.jsonl", calibration)
    write(tmp_path / "test.jsonl", {"the envelope has not come yet, write to me@example.com please": "card_arrival"})
    file = {
        "name": "toy",
        "labels": ["card_arrival", "refund_request", "lost_pin"],
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return Project.read(read_task_file(tmp_path), Progress(quiet=True))


class Book:
    """A hand-made ledger."""

    def __init__(self, path: Path) -> None:
        self.path, self.ledger, self.n = path, Ledger(path), 0

    def answer(self, text: str | None, said: str | None, stage: str = "small", **values: object) -> str:
        self.n += 1
        id = str(values.pop("id", f"r{self.n}"))
        messages = values.pop("messages", [["user", text]] if text is not None else None)
        given = {
            "id": id,
            "at": NOON + timedelta(minutes=self.n),
            "served_name": "auto",
            "status": 200,
            "latency_ms": 1.0,
            "stage": stage,
            "task": "toy",
            "request_text": json.dumps(messages) if messages else None,
            "answer_text": said,
        }
        self.ledger.append(LedgerRow.model_validate({**given, **values}))
        return id

    def feedback(
        self, id: str, verdict: str, answer: str | None = None, *, caller: str = "", hour: int = 1, judge: bool = True
    ) -> None:
        at = NOON + timedelta(hours=hour)
        said = {"id": id, "at": at, "verdict": verdict, "answer": answer, "caller": caller, "judge": judge}
        self.ledger.append(FeedbackRow.model_validate(said))

    def audit(self, id: str, draft: str | None, other: str | None, *, wrong: bool, by: str = "large") -> None:
        values = {"id": id, "at": NOON, "task": "toy", "certificate": "c", "propensity": 0.1, "wrong": wrong}
        self.ledger.append(AuditRow.model_validate({**values, "judged_by": by, "draft": draft, "other": other}))


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    made = Book(tmp_path / "ledger.db")
    monkeypatch.setenv("SMALLFIRST_LEDGER", str(made.path))
    yield made
    made.ledger.close()


@pytest.fixture
def reap(
    project: Project, book: Book, tmp_path: Path
) -> Callable[[], tuple[HarvestResult, dict[str, tuple[str, str, str]]]]:
    """Harvest; the result, and by text (answer, source, response id)."""

    def made() -> tuple[HarvestResult, dict[str, tuple[str, str, str]]]:
        out = tmp_path / "harvested.jsonl"
        result = harvest(project, out=out)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return result, {row["text"]: (row["label"], row["source"], row["response_id"]) for row in rows}

    return made


Reap = Callable[[], tuple[HarvestResult, dict[str, tuple[str, str, str]]]]


def test_each_source_gives_its_row_and_kept_answers_that_nobody_judged_give_none(book: Book, reap: Reap) -> None:
    book.answer("kept and nobody said a word", "lost_pin")
    book.feedback(book.answer("alpha question", "lost_pin"), "wrong", "refund_request")
    book.feedback(book.answer("beta question", "lost_pin"), "right")
    book.audit(book.answer("gamma question", "lost_pin"), None, "card_arrival", wrong=True, by="person")
    book.answer("delta question", "refund_request", "large")
    book.audit(book.answer("epsilon question", "lost_pin"), "lost_pin", "card_arrival", wrong=True)
    book.audit(book.answer("zeta question", "lost_pin"), "lost_pin", "lost_pin", wrong=False)
    result, rows = reap()
    assert rows == {
        "alpha question": ("refund_request", "feedback", "r2"),
        "beta question": ("lost_pin", "confirmed", "r3"),
        "gamma question": ("card_arrival", "audit", "r4"),
        "delta question": ("refund_request", "large", "r5"),
        "epsilon question": ("card_arrival", "large", "r6"),
    }
    assert result.by_source == {"feedback": 1, "confirmed": 1, "audit": 1, "large": 2}
    assert result.refused == {"known": 1}
    assert result.in_words[0].endswith("from 6 responses")


def test_of_answers_to_one_text_the_most_trusted_wins(book: Book, reap: Reap) -> None:
    book.answer("Where is it?", "refund_request", "large")
    book.feedback(book.answer("where is it", "lost_pin"), "right")
    book.feedback(book.answer("where is it!", "lost_pin"), "wrong", "lost_pin")  # says both, so says nothing
    book.feedback(book.answer("when is it", "lost_pin"), "wrong", "refund_request")
    book.answer("When is it?", "card_arrival", "large")
    result, rows = reap()
    assert rows == {"when is it": ("refund_request", "feedback", "r4")}
    assert result.refused == {"known": 1, "disputed": 3}


def test_equal_sources_that_differ_give_no_row(book: Book, reap: Reap) -> None:
    book.answer("what now", "refund_request", "large")
    book.audit(book.answer("What now?", "lost_pin"), "lost_pin", "card_arrival", wrong=True)
    book.answer("and then", "refund_request", "large")
    book.answer("And then?", "refund_request", "large")
    result, rows = reap()
    assert rows == {"And then?": ("refund_request", "large", "r4")}  # of equal ones the latest
    assert result.refused == {"known": 1, "disputed": 2}
    assert any("left out: 2 with conflicting answers" in line for line in result.in_words)


def test_what_a_person_calls_wrong_is_learned_from_no_response(book: Book, reap: Reap) -> None:
    book.feedback(book.answer("is it so", "refund_request", "small"), "wrong")
    book.answer("Is it so?", "refund_request", "large")
    book.feedback(book.answer("is that all", "refund_request"), "wrong")
    book.answer("is that all?", "lost_pin", "large")
    result, rows = reap()
    assert rows == {"is that all?": ("lost_pin", "large", "r4")}
    assert result.refused == {"disputed": 3}


def test_the_last_word_of_the_judges_stands(book: Book, reap: Reap) -> None:
    first, second = book.answer("one more", "lost_pin"), book.answer("another one", "lost_pin")
    book.feedback(first, "wrong", "card_arrival", caller="a")
    book.feedback(first, "wrong", "refund_request", caller="a", hour=2)
    book.feedback(second, "wrong", "card_arrival", caller="a")
    book.feedback(second, "wrong", "refund_request", caller="b", hour=2)
    result, rows = reap()
    assert rows == {
        "one more": ("refund_request", "feedback", "r1"),
        "another one": ("refund_request", "feedback", "r2"),
    }
    assert result.refused == {}


def test_a_users_word_alone_teaches_nothing_and_overrules_nobody_who_may_judge(book: Book, reap: Reap) -> None:
    def user(id: str, verdict: str, answer: str | None = None, caller: str = "a") -> None:
        book.feedback(id, verdict, answer, caller=caller, hour=2, judge=False)

    user(book.answer("corrected by users", "lost_pin"), "wrong", "refund_request")
    user(book.answer("Corrected by users!", "lost_pin"), "wrong", "refund_request", caller="b")
    user(book.answer("called right by a user", "lost_pin"), "right")
    user(book.answer("the large model agrees", "lost_pin", "large"), "right")
    user(book.answer("the large model differs", "lost_pin", "large"), "wrong", "refund_request")
    user(book.answer("only called wrong", "lost_pin", "large"), "wrong")
    audited = book.answer("audited and corrected", "lost_pin")
    book.audit(audited, "lost_pin", "card_arrival", wrong=True)
    user(audited, "wrong", "card_arrival")
    for text, verdict, answer in (
        ("corrected by a judge", "wrong", "card_arrival"),
        ("called right by a judge", "right", None),
    ):
        id = book.answer(text, "lost_pin")
        book.feedback(id, verdict, answer, caller="a")  # a judge's key of the same owner
        user(id, "wrong", "refund_request")
    judged = book.answer("audited by a person", "lost_pin")
    book.audit(judged, None, "card_arrival", wrong=True, by="person")
    user(judged, "wrong", "refund_request")
    result, rows = reap()
    assert rows == {
        "the large model agrees": ("lost_pin", "large", "r4"),
        "audited and corrected": ("card_arrival", "large", "r7"),
        "corrected by a judge": ("card_arrival", "feedback", "r8"),
        "called right by a judge": ("lost_pin", "confirmed", "r9"),
        "audited by a person": ("card_arrival", "audit", "r10"),
    }
    assert result.refused == {"disputed": 5}


def test_what_makes_no_row_is_counted_by_reason(book: Book, reap: Reap) -> None:
    outside = [{"stage": "domain", "decision": "passed on", "why": "x", "score": 0.9, "threshold": 0.4}]
    inside = [{**outside[0], "score": 0.1}]
    book.answer("write me a poem", "lost_pin", "large", trail=json.dumps(outside))
    book.answer("a question of the task", "lost_pin", "large", trail=json.dumps(inside))
    book.feedback(book.answer(None, None), "wrong", "lost_pin")
    book.answer(None, None, "large")
    turns = [["user", "hello"], ["assistant", "yes?"], ["user", "my pin is gone"]]
    book.answer(None, "lost_pin", "large", messages=turns)
    book.answer(None, "lost_pin", "large", messages=[["system", "be kind"], ["user", "a system message is no turn"]])
    book.answer("is this one", "I would say it depends", "large")
    book.answer("of another task", "lost_pin", "large", task="other")
    book.answer("asked of the small model itself", "lost_pin", "toy-small", task=None)
    book.answer("it failed", None, "large", status=503)
    result, rows = reap()
    assert set(rows) == {"a question of the task", "a system message is no turn"}
    assert result.refused == {"no_text": 2, "unfit": 3}
    assert any("--store-bodies" in line for line in result.in_words)


def test_no_text_of_the_own_rows_is_harvested_however_it_is_written(book: Book, reap: Reap) -> None:
    book.answer("WHERE is my card?", "card_arrival", "large")
    book.feedback(book.answer("I lost the pin!", "lost_pin"), "wrong", "refund_request")
    book.answer("calibrating text one about cards.", "lost_pin", "large")
    book.answer("The envelope has not come yet; write to other@example.org, please", "lost_pin", "large")
    book.answer("calibrating text two about card", "lost_pin", "large")
    result, rows = reap()
    assert rows == {"calibrating text two about card": ("lost_pin", "large", "r5")}  # 5 of 6 words are not 9 of 10
    assert result.refused == {"known": 1, "contradicts": 1, "held_out": 2}


def test_what_is_personal_is_out_before_anything_is_written(book: Book, reap: Reap, tmp_path: Path) -> None:
    book.answer("refund to DE89 3704 0044 0532 0130 00, mail bob@example.com", "refund_request", "large")
    book.answer("refund to GB82WEST12345698765432, mail ann@example.com", "refund_request", "large")
    book.answer("mail carl@example.com now", "carl@example.com is no label", "large")
    book.answer("disputed by dora@example.com", "lost_pin", "large")
    book.answer("disputed by emil@example.com", "card_arrival", "large")
    _, rows = reap()
    assert rows == {"refund to [IBAN], mail [EMAIL]": ("refund_request", "large", "r2")}
    written = (tmp_path / "harvested.jsonl").read_text() + record_path(tmp_path / "harvested.jsonl").read_text()
    assert "example.com" not in written
    assert "3704" not in written


def test_answers_in_json_are_redacted_by_value_and_stay_answers(book: Book, tmp_path: Path) -> None:
    rows = [{"text": f"say {word}", "target": {"word": word}} for word in WORDS]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    for name in ("validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f"in {name}", "target": {"word": "x"}}) + "\n")
    schema = {
        "type": "object",
        "properties": {"word": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["word"],
        "additionalProperties": False,
    }
    data = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    file = {"name": "toy", "kind": "extract", "schema": schema, "data": data | {"columns": {"text": "body"}}}
    for name in data.values():
        path = tmp_path / name
        path.write_text(path.read_text().replace('"text"', '"body"'), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    project = Project.read(read_task_file(tmp_path), Progress(quiet=True))
    book.answer("write to bob@example.com about the word", '{"word": "bob@example.com"}', "large")
    book.answer("charge card 4111111111111111", '{"word": "card", "n": 4111111111111111}', "large")
    result = harvest(project, out=tmp_path / "out.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert row["body"] == "write to [EMAIL] about the word"
    assert row["target"] == {"word": "[EMAIL]"}
    assert result.refused == {"unfit": 1}  # text where the schema asks for a number
    grown = with_harvested(
        project.rows, tmp_path / "out.jsonl", columns=project.file.data.columns, labels=project.task.closed
    )
    assert grown.train.examples[-1].answer == '{"word": "[EMAIL]"}'


def test_since_takes_what_was_said_later_about_earlier_answers(project: Project, book: Book, tmp_path: Path) -> None:
    early, late = book.answer("an early one", "lost_pin"), book.answer("a late one", "lost_pin")
    book.answer("early and large", "lost_pin", "large")
    book.feedback(early, "right", hour=1)
    book.feedback(late, "right", hour=5)
    out = tmp_path / "new.jsonl"
    result = harvest(project, out=out, since=NOON + timedelta(hours=2))
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["a late one"]
    assert result.since == "2026-01-02T14:00:00+00:00"
    harvest(project, out=out)
    with pytest.raises(ConfigError, match="from further back, and would lose rows"):
        harvest(project, out=out, since=NOON)


def test_a_file_that_is_not_its_own_is_never_overwritten(
    project: Project, book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.answer("one to learn", "lost_pin", "large")
    out = tmp_path / "harvested.jsonl"
    first = harvest(project, out=out)
    assert HarvestResult.load(record_path(out)) == first
    assert harvest(project, out=out).written == first.written
    out.write_text(out.read_text().replace("lost_pin", "card_arrival"))
    with pytest.raises(ConfigError, match="was changed since an earlier run wrote it"):
        harvest(project, out=out)
    with pytest.raises(ConfigError, match="is an input, so it cannot be the output"):
        harvest(project, out=tmp_path / "train.jsonl")
    monkeypatch.setenv("SMALLFIRST_LEDGER", str(tmp_path / "none.db"))
    with pytest.raises(ConfigError, match=r"no such ledger(?s:.*)--ledger"):
        harvest(project, out=tmp_path / "other.jsonl")
    assert not (tmp_path / "none.db").exists()


def test_harvested_rows_join_the_training_rows_and_nothing_else(project: Project, book: Book, tmp_path: Path) -> None:
    book.answer("one to learn", "lost_pin", "large")
    out = tmp_path / "harvested.jsonl"
    harvest(project, out=out)
    grown = with_harvested(project.rows, out, columns=project.file.data.columns, labels=project.task.closed)
    assert [e.asked for e in grown.train.examples] == [*TRAIN, "one to learn"]
    assert grown.model_copy(update={"train": project.rows.train}) == project.rows
    again = project._replace(rows=grown)
    assert harvest(again, out=out).n_rows == 1  # its own earlier rows are no rows of the task
    assert harvest(again, out=tmp_path / "b.jsonl").refused == {"known": 1}
    write(out, {"Where is my CARD": "lost_pin"})
    assert (
        with_harvested(project.rows, out, columns=project.file.data.columns, labels=project.task.closed) == project.rows
    )  # people's row stands
