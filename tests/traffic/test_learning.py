"""A drafted task is learnt from recorded answers; corrections win, and enough of them certify accuracy."""

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from fixtures.evaluations import evaluated_row
from fixtures.takeover import TEACHER, cases, write_draft

from smallfirst.base.stats.intervals import wilson
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import FeedbackRow, LedgerRow
from smallfirst.models.recorded import read_recording
from smallfirst.path.project.task_file import read_task_file
from smallfirst.traffic import learning
from smallfirst.traffic.learning import learn, requests_that_differ


def test_a_task_is_learnt_in_shadow_and_promises_agreement(learnt):
    found, taken = learnt.learnt, learnt.takeovers.get("queues")
    assert found.n_rows == 240
    assert not found.promises_accuracy
    assert found.share > 0.5
    assert "each text counted once (95 %); right is what the large model answered" in "\n".join(found.in_words)
    assert (found.differ.value, found.differ.n) == (0, 3 * 48)  # each text was asked three times
    worse = found.model_copy(update={"differ": wilson(30, 40)})
    assert "counted by requests, 75.0% [" in "\n".join(worse.in_words)
    assert "frequent ones are answered worse" in "\n".join(worse.in_words)
    assert "answered worse" not in "\n".join(worse.model_copy(update={"limit": 0.8}).in_words)
    assert (taken.state, taken.live_share, taken.version) == ("shadow", 0, 1)
    file = read_task_file(learnt.folder / "learnt")
    assert file.routing.labels == "large"
    header, answers = read_recording(learnt.folder / "learnt" / "recorded.jsonl")
    assert header.model == TEACHER
    assert {answer.cost_usd for answer in answers} == {1e-4}


class _Stopped(Exception):
    pass


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """What `learn` writes before it trains."""

    def stop(*_: object, **__: object) -> None:
        raise _Stopped

    monkeypatch.setattr(learning, "try_run", stop)
    monkeypatch.chdir(tmp_path)  # a folder is named from where the user stands

    def prepare(corrected: int, minutes: float | None = None, all_wrong: bool = False, **settings: object):
        folder = write_draft(tmp_path / f"draft-{corrected}", cases(600), corrected=corrected, all_wrong=all_wrong)
        file = folder / "task.yaml"
        file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
        with pytest.raises(_Stopped):
            learn(Path(folder.name), progress=None, minutes=minutes)
        settings = yaml.safe_load((folder / "learnt" / "task.yaml").read_text())
        read = {
            name: [json.loads(line) for line in (folder / "learnt" / path).read_text().splitlines()]
            for name, paths in settings["data"].items()
            for path in (paths if isinstance(paths, list) else [paths])
        }
        return settings, read

    return prepare


def test_few_corrections_train_only(prepared):
    settings, rows = prepared(30)
    assert settings["routing"]["labels"] == "large"
    assert dict(cases(600)) == {row["text"]: row["label"] for row in rows["train"]}
    assert sum("source" not in row for row in rows["train"]) == 30


@pytest.mark.parametrize(("minutes", "small"), [(None, "words"), (2, None)])
def test_little_time_leaves_the_choice_of_a_candidate_to_the_run(prepared, minutes, small):
    settings, _ = prepared(30, minutes=minutes, routing={"small": "words"})
    assert settings["routing"].get("small") == small


def test_few_corrections_leave_the_rows_that_certify_agreement_as_they_were_recorded(prepared, tmp_path):
    held_out = [{"text": text, "label": "loans", "source": TEACHER} for text, _ in cases(600)[:30]]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    _, rows = prepared(30, data={"train": "rows.jsonl", "validation": "../held_out.jsonl"})
    assert rows["validation"] == held_out
    assert sum("source" not in row for row in rows["train"]) == 30


def test_many_corrections_certify_and_test_and_the_rest_trains(prepared):
    settings, rows = prepared(400, all_wrong=True)
    gold = dict(cases(600))
    assert settings["routing"]["labels"] == "gold"
    assert settings["large"] == {"recorded": "recorded.jsonl"}
    for part in ("validation", "test"):
        assert all("source" not in row and row["label"] == gold[row["text"]] for row in rows[part])
    assert sum("source" in row for row in rows["train"]) == 200  # as they were recorded
    sizes = {name: len(part) for name, part in rows.items()}
    assert sum(sizes.values()) == 600
    assert 70 < sizes["validation"] < 130
    assert 40 < sizes["test"] < 80


def test_corrections_where_the_large_model_was_wrong_alone_certify_nothing(prepared):
    settings, rows = prepared(400)
    assert settings["routing"]["labels"] == "large"
    assert dict(cases(600)) == {row["text"]: row["label"] for row in rows["train"]}


def test_people_may_name_a_label_that_the_large_model_never_did(prepared):
    settings, _ = prepared(30, labels=["cards", "travel"])
    assert settings["labels"] == ["cards", "travel", "loans"]


def test_what_judges_marked_trains_and_measures_nothing(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    at = datetime.now(UTC)
    held_out = next(text for text, _ in cases(600))
    said = {"new and wrong": "loans", "new and right": None, "by a user": "loans", held_out: "loans"}
    with closing(Ledger(tmp_path / "state" / "ledger.db")) as ledger:
        for text, answer in said.items():
            row = {"id": text, "at": at, "served_name": "queues", "status": 200, "latency_ms": 1.0, "task": "queues"}
            body = {"request_text": json.dumps([["user", text]]), "answer_text": "cards"}
            ledger.append(LedgerRow.model_validate({**row, **body, "stage": "large"}))
            verdict = "wrong" if answer else "right"
            ledger.append(FeedbackRow(id=text, at=at, verdict=verdict, answer=answer, judge=text != "by a user"))
    settings, rows = prepared(0)
    assert settings["data"]["harvested"] == ["marked.jsonl"]
    assert [(row["text"], row["label"], row["source"]) for row in rows["harvested"]] == [
        ("new and wrong", "loans", "feedback"),
        ("new and right", "cards", "confirmed"),
    ]


def test_a_text_weighs_as_many_requests_as_asked_it() -> None:
    """Of four kept texts one is wrong, and nine of twelve requests ask it."""
    asked = {f"text {i}": n for i, n in enumerate((9, 1, 1, 1, 50))}
    rows = [
        evaluated_row(str(i), "a", "b" if i in (0, 4) else "a", text=f"Text {i}!", certified=i != 4) for i in range(5)
    ]
    differ = requests_that_differ(rows, asked)
    assert (differ.value, differ.n) == (0.75, 12)
    assert differ.low < 0.75 < differ.high
    assert requests_that_differ([row.model_copy(update={"certified": False}) for row in rows], asked) is None
