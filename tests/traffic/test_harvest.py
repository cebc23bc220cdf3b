"""What the ledger teaches, whom it believes, and what never becomes a training row."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fixtures.preflight import task_of, write_rows

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import with_harvested
from smallfirst.traffic.harvest import HarvestResult, harvest, record_path

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
WORDS = ("one", "two", "three", "four", "five")
TRAIN = {
    "where is my card": "card_arrival",
    "money back for the kettle": "refund_request",
    "I lost the pin": "lost_pin",
}


def labelled(rows: dict[str, str]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in rows.items()]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    parts = {
        "train": TRAIN,
        "validation": {f"calibrating text {word} about cards": "card_arrival" for word in WORDS},
        "test": {"the envelope has not come yet, write to me@example.com please": "card_arrival"},
    }
    labels = ["card_arrival", "refund_request", "lost_pin"]
    return task_of(tmp_path, {part: labelled(rows) for part, rows in parts.items()}, name="toy", labels=labels)


Said = Callable[[str], FeedbackRow | AuditRow]
"""What is said of the response with an id."""


class Book:
    def __init__(self, path: Path) -> None:
        self.path, self.ledger, self.n = path, Ledger(path), 0

    def answer(self, text: str | None, said: str | None, stage: str = "small", *what: Said, **values: object) -> None:
        """Note a response, `r1` and so on, with what is said of it."""
        self.n += 1
        id, messages = f"r{self.n}", values.pop("messages", [["user", text]] if text is not None else None)
        given = {
            "id": id, "at": NOON + timedelta(minutes=self.n), "served_name": "auto", "status": 200, "latency_ms": 1.0,
            "stage": stage, "task": "toy", "request_text": json.dumps(messages) if messages else None,
            "answer_text": said,
        }  # fmt: skip
        self.ledger.append(LedgerRow.model_validate({**given, **values}))
        for one in what:
            self.ledger.append(one(id))


def mark(verdict: str, answer: str | None = None, *, judge: bool = True, caller: str = "a", hour: int = 1) -> Said:
    given = {"verdict": verdict, "answer": answer, "judge": judge, "caller": caller, "at": NOON + timedelta(hours=hour)}
    return lambda id: FeedbackRow.model_validate({**given, "id": id})


def audit(other: str, *, wrong: bool = True, by: str = "large") -> Said:
    given = {"at": NOON, "task": "toy", "certificate": "c", "propensity": 0.1, "wrong": wrong, "judged_by": by}
    return lambda id: AuditRow.model_validate({**given, "id": id, "draft": None, "other": other})


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    made = Book(tmp_path / "ledger.db")
    monkeypatch.setenv("SMALLFIRST_LEDGER", str(made.path))
    yield made
    made.ledger.close()


Reap = Callable[[], tuple[HarvestResult, dict[str, tuple[str, str, str]]]]


@pytest.fixture
def reap(project: Project, book: Book, tmp_path: Path) -> Reap:
    """Harvest; the result, and by text (answer, source, response id)."""

    def made() -> tuple[HarvestResult, dict[str, tuple[str, str, str]]]:
        out = tmp_path / "harvested.jsonl"
        result = harvest(project, out=out)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return result, {row["text"]: (row["label"], row["source"], row["response_id"]) for row in rows}

    return made


PIN, REFUND, CARD = "lost_pin", "refund_request", "card_arrival"
USER = {"judge": False, "hour": 2}
OUTSIDE = [{"stage": "domain", "decision": "passed on", "why": "x", "score": 0.9, "threshold": 0.4}]
HEARD: dict[str, tuple[list[tuple[Any, ...]], dict[str, tuple[str, str, str]], dict[str, int]]] = {
    "kept, and nobody said a word": ([("a b", PIN)], {}, {}),
    "corrected": ([("a b", PIN, "small", mark("wrong", REFUND))], {"a b": (REFUND, "feedback", "r1")}, {}),
    "confirmed": ([("a b", PIN, "small", mark("right"))], {"a b": (PIN, "confirmed", "r1")}, {}),
    "a person's audit": ([("a b", PIN, "small", audit(CARD, by="person"))], {"a b": (CARD, "audit", "r1")}, {}),
    "the large model": ([("a b", REFUND, "large")], {"a b": (REFUND, "large", "r1")}, {}),
    "its audit": ([("a b", PIN, "small", audit(CARD))], {"a b": (CARD, "large", "r1")}, {}),
    "an audit that agrees": ([("a b", PIN, "small", audit(PIN, wrong=False))], {}, {"known": 1}),
    "the most trusted wins": (
        [("A b?", CARD, "large"), ("a b", PIN, "small", mark("wrong", REFUND)), ("a b!", PIN, "small", mark("right"))],
        {"a b": (REFUND, "feedback", "r2")}, {"known": 1, "disputed": 1},
    ),
    "of equal ones the latest": (
        [("a b", PIN, "large"), ("A b?", CARD, "large")], {"A b?": (CARD, "large", "r2")}, {"known": 1},
    ),
    "called wrong": ([("a b", REFUND, "small", mark("wrong")), ("A b?", REFUND, "large")], {}, {"disputed": 2}),
    "another answer than the wrong one": (
        [("a b", REFUND, "small", mark("wrong")), ("A b?", PIN, "large")], {"A b?": (PIN, "large", "r2")},
        {"disputed": 1},
    ),
    "a judge's last word": (
        [("a b", PIN, "small", mark("wrong", CARD), mark("wrong", REFUND, caller="b", hour=2))],
        {"a b": (REFUND, "feedback", "r1")}, {},
    ),
    "a user's correction": ([("a b", PIN, "small", mark("wrong", REFUND, **USER))], {}, {"disputed": 1}),
    "a user's confirmation": ([("a b", PIN, "small", mark("right", **USER))], {}, {"disputed": 1}),
    "a user agrees with the large model": (
        [("a b", PIN, "large", mark("right", **USER))], {"a b": (PIN, "large", "r1")}, {},
    ),
    "a user doubts it": ([("a b", PIN, "large", mark("wrong", **USER))], {}, {"disputed": 1}),
    "a user against a judge": (
        [("a b", PIN, "small", mark("right"), mark("wrong", REFUND, **USER))], {"a b": (PIN, "confirmed", "r1")}, {},
    ),
    "a user against a person's audit": (
        [("a b", PIN, "small", audit(CARD, by="person"), mark("wrong", REFUND, **USER))],
        {"a b": (CARD, "audit", "r1")}, {},
    ),
    "out of domain": ([("a b", PIN, "large", {"trail": json.dumps(OUTSIDE)})], {}, {"unfit": 1}),
    "no text": ([(None, None, "small", mark("wrong", PIN)), (None, None, "large")], {}, {"no_text": 2}),
    "several turns": (
        [("", PIN, "large", {"messages": [["user", "a"], ["assistant", "b"], ["user", "c"]]})], {}, {"unfit": 1},
    ),
    "a system message": (
        [("", PIN, "large", {"messages": [["system", "be kind"], ["user", "a b"]]})], {"a b": (PIN, "large", "r1")},
        {},
    ),
    "no label": ([("a b", "it depends", "large")], {}, {"unfit": 1}),
    "another task, a failure": (
        [("a b", PIN, "large", {"task": "other"}), ("b", None, "large", {"status": 503})], {}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("responses", "expected", "refused"), HEARD.values(), ids=HEARD)
def test_who_is_believed(book: Book, reap: Reap, responses: Any, expected: Any, refused: Any) -> None:
    for text, said, *more in responses:
        values = more.pop() if more and isinstance(more[-1], dict) else {}
        book.answer(text, said, *more, **values)
    result, rows = reap()
    assert (rows, result.refused) == (expected, refused)
    assert sum(result.by_source.values()) == result.n_rows == len(rows)
    assert ("--store-bodies" in result.in_words[-1]) == ("no_text" in refused)


def test_no_text_of_the_own_rows_is_harvested_however_it_is_written(book: Book, reap: Reap) -> None:
    book.answer("WHERE is my card?", "card_arrival", "large")
    book.answer("I lost the pin!", "lost_pin", "small", mark("wrong", "refund_request"))
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
    _, rows = reap()
    assert rows == {"refund to [IBAN], mail [EMAIL]": ("refund_request", "large", "r2")}
    written = (tmp_path / "harvested.jsonl").read_text() + record_path(tmp_path / "harvested.jsonl").read_text()
    assert "example.com" not in written
    assert "3704" not in written


def test_answers_in_json_are_redacted_by_value_and_stay_answers(book: Book, tmp_path: Path) -> None:
    word, number = {"type": "string"}, {"type": "integer"}
    schema = {"type": "object", "properties": {"word": word, "n": number}, "required": ["word"]}
    parts = {"train": WORDS, "validation": ("in validation",), "test": ("in test",)}
    rows = {part: [{"body": f"say {one}", "target": {"word": one}} for one in words] for part, words in parts.items()}
    project = task_of(
        tmp_path,
        rows,
        name="toy",
        kind="extract",
        schema=schema | {"additionalProperties": False},
        data={"columns": {"text": "body"}},
    )
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


def test_only_its_own_rows_are_overwritten_and_only_a_ledger_is_read(
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
    monkeypatch.setenv("SMALLFIRST_LEDGER", str(tmp_path / "none.db"))
    with pytest.raises(ConfigError, match=r"no such ledger(?s:.*)--ledger"):
        harvest(project, out=tmp_path / "other.jsonl")


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
    write_rows(out, labelled({"Where is my CARD": "lost_pin"}))
    assert (
        with_harvested(project.rows, out, columns=project.file.data.columns, labels=project.task.closed) == project.rows
    )  # people's row stands
