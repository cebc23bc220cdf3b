"""A drafted task is learnt from recorded answers; corrections win, and enough of them certify accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from fixtures.takeover import TEACHER, cases, write_draft

from smallfirst.base.errors import GateFailed
from smallfirst.base.progress import Progress
from smallfirst.models.recorded import read_recording
from smallfirst.path.project.task_file import read_task_file
from smallfirst.traffic import learning
from smallfirst.traffic.learning import learn
from smallfirst.traffic.task_source import TakeOvers


def test_a_task_is_learnt_in_shadow_and_promises_agreement(learnt):
    found, taken = learnt.learnt, learnt.takeovers.get("queues")
    assert found.n_rows == 240
    assert not found.promises_accuracy
    assert found.share > 0.5
    assert "each text counted once (95 %); right is what the large model answered" in "\n".join(found.in_words)
    assert (taken.state, taken.live_share, taken.version) == ("shadow", 0, 1)
    file = read_task_file(learnt.folder / "learnt")
    assert file.routing.labels == "large"
    header, answers = read_recording(learnt.folder / "learnt" / "recorded.jsonl")
    assert header.model == TEACHER
    assert {answer.cost_usd for answer in answers} == {1e-4}


def test_too_few_rows_promise_nothing_and_nothing_is_put_in_shadow(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "state"))
    folder, takeovers = write_draft(tmp_path / "queues", cases(90)), TakeOvers(tmp_path / "takeovers.json")
    with pytest.raises(GateFailed, match="queues: nothing can be promised yet: too few labels") as refused:
        learn(folder, progress=Progress(quiet=True), takeovers=takeovers)
    assert "more traffic" in str(refused.value)
    assert takeovers.read() == {}


class _Stopped(Exception):
    pass


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """What `learn` writes before it trains."""

    def stop(*_: object, **__: object) -> None:
        raise _Stopped

    monkeypatch.setattr(learning, "try_run", stop)
    monkeypatch.chdir(tmp_path)  # a folder is named from where the user stands

    def prepare(corrected: int, minutes: float | None = None, **settings: object):
        folder = write_draft(tmp_path / f"draft-{corrected}", cases(600), corrected=corrected)
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
    settings, rows = prepared(400)
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


def test_where_training_on_the_teacher_is_forbidden_it_learns_from_people_alone(prepared, tmp_path):
    terms = {"teachers": {TEACHER: {"training_allowed": False}}, "upstreams": {"a": {"base_url": "https://a.test/v1"}}}
    (tmp_path / "gateway.yaml").write_text(json.dumps(terms))
    _, rows = prepared(300)
    assert sum(map(len, rows.values())) == 300
    assert not any("source" in row for part in rows.values() for row in part)


def test_people_may_name_a_label_that_the_large_model_never_did(prepared):
    settings, _ = prepared(30, labels=["cards", "travel"])
    assert settings["labels"] == ["cards", "travel", "loans"]
