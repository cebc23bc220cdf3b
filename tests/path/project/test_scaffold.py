"""The folder of a task, from rows of any shape."""

import json
from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.base.progress import Progress
from smallfirst.data.check import check
from smallfirst.data.row_formats import Columns
from smallfirst.data.sources.load import load_rows
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import PARTS, read_rows
from smallfirst.path.project.scaffold import init, scaffold
from smallfirst.path.project.task_file import read_task_file

TOPICS = ("card", "refund", "pin")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["Nachricht;Thema"] + [f"where is my {TOPICS[i % 3]} of day {i};{TOPICS[i % 3]}" for i in range(120)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    system = {"role": "system", "content": "File it.\nBriefly."}
    turns = [[system, {"role": "user", "content": f"my {TOPICS[i % 3]}, day {i}"}] for i in range(90)]
    rows = [{"messages": [*turn, {"role": "assistant", "content": TOPICS[i % 3]}]} for i, turn in enumerate(turns)]
    rows[4]["messages"].pop()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_table_is_named_where_it_stands(tmp_path: Path, table: Path) -> None:
    task_file = init(tmp_path / "my tickets", from_=table)
    assert (task_file.name, task_file.kind) == ("my-tickets", "classify")
    assert [path.name for path in (tmp_path / "my tickets").iterdir()] == ["task.yaml"]
    text = (tmp_path / "my tickets" / "task.yaml").read_text()
    assert text == (
        f"# 120 rows of {table}\n\n"
        "kind: classify\n"
        "data:\n  train: ../rows.csv\n  columns: {text: Nachricht, label: Thema}\n\n"
        "# What is good enough to answer every request; without it certified answers alone go live.\n"
        "# gate: {accuracy_at_least: 0.8}\n"
        "# The large model that answers today, to compare with and to fall back to; its key is in OPENAI_API_KEY.\n"
        "# large: {endpoint: {base_url: https://api.openai.com/v1, model: gpt-4o-mini}}\n"
    )
    project = Project.read(task_file)
    assert project.task.closed == ("card", "pin", "refund")
    lines = zip(table.read_text().splitlines(), ["tenant", *"ab" * 60], strict=True)
    table.write_text("".join(f"{line};{tenant}\n" for line, tenant in lines))
    assert init(tmp_path / "of two", from_=table).data.columns.tenant == "tenant"


@pytest.mark.parametrize(
    ("name", "found"), [("out-of-scope", "out-of-scope"), ("None of the above", None), ("scope", None)]
)
def test_a_label_for_what_is_out_of_scope_is_found_in_any_file(tmp_path: Path, name: str, found: str | None) -> None:
    for part, last in (("train", "pin"), ("test", name)):
        rows = [{"text": f"{part} message {i}", "label": [*TOPICS[:2], last][i % 3]} for i in range(60)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if name == "None of the above":  # and a second such label: nobody can tell which is meant
        with (tmp_path / "test.jsonl").open("a") as file:
            file.write(json.dumps({"text": "one more message", "label": "oos"}) + "\n")
    task_file = init(tmp_path / "desk", from_=tmp_path)
    assert task_file.data.out_of_scope_label == found
    text = (tmp_path / "desk" / "task.yaml").read_text()
    assert ("If it is a label to answer with, write other: out-of-scope" in text) == (found is not None)


def test_other_formats_become_rows_of_the_task_and_the_unused_are_listed(tmp_path: Path, chats: Path) -> None:
    made = scaffold(tmp_path / "desk", str(chats), {})
    folder = tmp_path / "desk"
    assert json.loads((folder / "rows.jsonl").read_text().splitlines()[4]) == {"text": "my pin, day 5", "label": "pin"}
    unused = json.loads((folder / "not_used.jsonl").read_text())
    assert (unused["path"], unused["line"]) == (str(chats), 5)
    assert unused["rule"].startswith("no answer")
    task_file = init(tmp_path / "desk2", from_=chats)
    assert task_file.about == "File it.\nBriefly."
    assert len(Project.read(task_file).rows.train) > 40
    assert made.in_words[:3] == [
        'chats or logs of requests, classify: text "text" → label "answer" (3 different), 89 rows',
        "",
        "  text              label",
    ]
    assert f"rows that are not used: 1, listed in {folder / 'not_used.jsonl'}" in made.in_words


def test_answers_of_a_log_are_marked_as_the_model_s_and_questions_on_one_passage_are_a_group(tmp_path: Path) -> None:
    log = [
        {
            "request": {"model": "large-1", "messages": [{"role": "user", "content": f"my {TOPICS[i % 3]}, day {i}"}]},
            "response": {"choices": [{"message": {"content": TOPICS[i % 3]}}]},
        }
        for i in range(90)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    rows = Project.read(init(tmp_path / "desk", from_=tmp_path / "log.jsonl")).rows
    assert {example.source for example in rows.train.examples} == {"large-1"}
    asked = [{"question": f"what is in box {i}?", "context": f"box {i // 2}", "answer": f"the {i}"} for i in range(90)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    assert init(tmp_path / "boxes", from_=tmp_path / "asked.jsonl", kind="answer").data.columns.group == "context"


def test_what_the_rows_leave_open_is_assumed_and_said(tmp_path: Path) -> None:
    rows = [{"text": f"message number {i}, please", "queue": TOPICS[i % 3], "team": "ab"[i % 2]} for i in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = scaffold(tmp_path / "assumed", str(path), {})
    assert made.guess.columns["label"] == "queue"
    assert 'or: --label team: classify: text "text" → label "team"' in made.in_words
    assert init(tmp_path / "chosen", from_=path, label="team").data.columns.label == "team"


def test_rows_without_an_answer_are_counted_and_stated(tmp_path: Path, table: Path) -> None:
    with table.open("a") as file:
        file.write("\n\nwhere is my parcel;\nand this;")
    task_file = init(tmp_path / "tickets", from_=table)
    assert task_file.data.skip_bad_rows_up_to == 0.02  # 2 of 122, rounded up
    assert "# Not used: 2 rows, named by smallfirst check\n" in (tmp_path / "tickets" / "task.yaml").read_text()
    assert len(Project.read(task_file).rows.train) > 40


def test_nothing_is_overwritten_and_wrong_arguments_are_named(tmp_path: Path, table: Path, chats: Path) -> None:
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "rows.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"rows\.jsonl exists already"):
        init(tmp_path / "desk", from_=chats)
    assert [path.name for path in (tmp_path / "desk").iterdir()] == ["rows.jsonl"]
    init(tmp_path / "a", from_=table)
    with pytest.raises(ConfigError, match=r"task\.yaml exists already"):
        init(tmp_path / "a", from_=table)
    with pytest.raises(ConfigError, match=r'lable: rows have no such part — did you mean "label"\?'):
        init(tmp_path / "b", from_=table, lable="Thema")
    with pytest.raises(DataError, match="no such file"):
        init(tmp_path / "b", from_=tmp_path / "none.csv")


@pytest.mark.parametrize("kind", ["classify", "extract", "answer", "chat"])
def test_a_gate_is_the_users_only_if_the_user_said_what_is_good_enough(kind: str, tmp_path: Path) -> None:
    by_default, given = init(tmp_path / "a", kind=kind), init(tmp_path / "b", kind=kind, good_enough=0.85)
    assert not by_default.sets_gate
    assert "guarantee" not in by_default.routing.model_fields_set
    assert given.sets_gate
    found = given.gate.measures_at_least["token_f1"] if kind == "chat" else given.gate.accuracy_at_least
    assert found == 0.85


def test_several_labels_in_one_column_become_lists_and_can_stay_one(tmp_path: Path) -> None:
    given = [f"{a}|{b}" if i % 3 else a for i in range(10) for a in TOPICS for b in TOPICS if a != b]
    path = tmp_path / "rows.csv"
    path.write_text("message,topic\n" + "".join(f"question {i} about {x},{x}\n" for i, x in enumerate(given)))
    made = scaffold(tmp_path / "several", str(path), {})
    assert '"topic" has several labels a text, joined by "|"; with --label topic' in "\n".join(made.in_words)
    project = Project.read(read_task_file(made.task_yaml), Progress(quiet=True))
    assert project.task.labels == tuple(sorted(TOPICS))
    assert json.loads(project.rows.train.examples[0].answer)[0] in TOPICS
    assert scaffold(tmp_path / "one", str(path), {"label": "topic"}).guess.columns["label"] == "topic"
    found = check(load_rows(path, columns=Columns(text="message", label="topic")))
    assert 'labels that seem to be several, joined by "|"' in [one.what for one in found.findings]


def test_several_labels_become_lists_in_every_part_of_a_folder(tmp_path: Path) -> None:
    (folder := tmp_path / "parts").mkdir()
    for part, n in (("train", 10), ("validation", 2), ("test", 1)):  # few rows alone do not show what joins labels
        given = [f"{a}|{b}" if i % 3 else a for i in range(n) for a in TOPICS for b in TOPICS if a != b]
        lines = (f"{part} question {i} about {x},{x}\n" for i, x in enumerate(given))
        (folder / f"{part}.csv").write_text("message,topic\n" + "".join(lines))
    made = scaffold(tmp_path / "several", str(folder), {})
    rows = Project.read(read_task_file(made.task_yaml), Progress(quiet=True)).rows
    every = [one for part in (rows.train, rows.selection, rows.test) for one in part.examples]
    assert {label for one in every for label in json.loads(one.answer)} == set(TOPICS)
    assert len(rows.test.examples) == len(TOPICS) * (len(TOPICS) - 1)


def test_rows_are_counted_alike_and_a_header_alone_is_said(tmp_path: Path, table: Path) -> None:
    table.write_text(table.read_text() + "\n;\nno label;\n;card\na;b;c\n")
    made = scaffold(tmp_path / "task", str(table), {})
    assert 'Thema" (3 different), 120 rows' in "\n".join(made.in_words)
    assert made.task_yaml.read_text().startswith("# 120 rows of")
    rows = read_rows(read_task_file(made.task_yaml))
    assert sum(len(getattr(rows, name)) for name in PARTS) == 120
    table.write_text("Nachricht;Thema\n")
    with pytest.raises(DataError, match="there are no rows, at most a header"):
        scaffold(tmp_path / "none", str(table), {})
