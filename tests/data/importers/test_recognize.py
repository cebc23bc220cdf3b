"""A gallery of shapes: each is read rightly, or asked about."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.assistants import assistant_rows

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.data.importers.recognize import Guess, guess, read_source

INTENTS = ("card arrival", "refund", "lost pin")
PHRASES = (
    "where is the {} that I asked for on day {}",
    "I want to know about the {} of order {}, please",
    "can you help me with my {} number {}",
)
TEXTS = [PHRASES[i % 3].format(INTENTS[i % 3], i) for i in range(60)]
LABELS = [INTENTS[i % 3] for i in range(60)]
SYSTEM = "File the message under card arrival, refund or lost pin."
TEMPLATE = (
    'Today is 2026-09-{:02d}. File this message under card arrival, refund or lost pin.\n\nMessage: """{}"""\n\nLabel:'
)

Write = Callable[[str, Any], Path]
Row = dict[str, Any]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str | bytes):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        elif name.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path

    return to_file


def read(path: Path, **chosen: str) -> Guess:
    return guess(read_source(str(path)), chosen, path.name)


def chat(text: str, answer: str, system: str = SYSTEM) -> list[Row]:
    turns = (("system", system), ("user", text), ("assistant", answer))
    return [{"role": role, "content": content} for role, content in turns]


def request(i: int) -> Row:
    return {"model": "large-1", "messages": [{"role": "user", "content": TEMPLATE.format(1 + i % 9, TEXTS[i])}]}


def response(content: str, reason: str = "stop") -> Row:
    return {"choices": [{"finish_reason": reason, "message": {"role": "assistant", "content": content}}]}


def test_a_table_with_semicolons_and_names_of_its_own(write: Write) -> None:
    lines = ["Nr;Datum;Nachricht;Kategorie;Kanal"]
    lines += [f"{i};2026-09-{1 + i % 28:02d};{t};{c};mail" for i, (t, c) in enumerate(zip(TEXTS, LABELS, strict=True))]
    found = read(write("rows.csv", "\n".join(lines).encode("cp1252")))
    assert (found.kind, found.columns) == ("classify", {"text": "Nachricht", "label": "Kategorie"})
    assert (found.others, found.as_it_stands) == ((), True)
    assert found.in_words == 'classify: text "Nachricht" → label "Kategorie" (3 different)'
    assert found.other_columns == ["Nr", "Datum", "Kanal"]


def test_names_that_say_nothing_are_told_by_the_values(write: Write) -> None:
    rows = [{"a": i, "b": LABELS[i], "c": TEXTS[i], "d": i % 7 / 10} for i in range(60)]
    found = read(write("rows.jsonl", rows))
    assert (found.kind, found.columns) == ("classify", {"text": "c", "label": "b"})


def test_two_columns_that_may_be_the_label_are_a_question(write: Write) -> None:
    rows = [{"text": TEXTS[i], "queue": LABELS[i], "team": "ab"[i % 2]} for i in range(60)]
    path = write("rows.jsonl", rows)
    found = read(path)
    assert found.columns["label"] == "queue"
    assert found.others == ('--label team: classify: text "text" → label "team"',)
    chosen = read(path, label="team")
    assert (chosen.columns["label"], chosen.others) == ("team", ())
    with pytest.raises(ConfigError, match=r'--label tema: no such column — did you mean "team"\?'):
        read(path, label="tema")


def test_a_question_with_an_answer_and_a_topic_may_be_either(write: Write) -> None:
    rows = [{"question": t, "answer": f"{t}, said at length so that nobody asks", "topic": c}
            for t, c in zip(TEXTS, LABELS, strict=True)]  # fmt: skip
    path = write("rows.jsonl", rows)
    found = read(path)
    other = {"chat": "classify", "classify": "chat"}[found.kind]
    assert [one.partition(":")[0] for one in found.others] == [f"--kind {other}"]
    assert read(path, kind="classify").columns == {"text": "question", "label": "topic"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_columns_whose_values_stand_in_the_text_are_fields(write: Write, name: str) -> None:
    rows = [
        {"mail": f"Invoice {1000 + i} of {name} on {3 + i % 20} May 2026, total {1250 + i:,}.50 euro", "no": 1000 + i,
         "vendor": name, "total": 1250.5 + i, "day": f"2026-05-{3 + i % 20:02}", "row": i}
        for i, name in enumerate(["Acme Ltd", "Bolt GmbH", "Cole & Sons"] * 20)
    ]  # fmt: skip
    table = io.StringIO()
    csv.DictWriter(table, rows[0]).writerows([dict(zip(rows[0], rows[0], strict=True)), *rows])
    found = read(write(name, rows if name == "rows.jsonl" else table.getvalue()))
    assert (found.kind, found.columns) == ("extract", {"text": "mail", "fields": "no,vendor,total,day"})
    no = "1000" if name == "rows.csv" else 1000  # a CSV has no types, and every number stands in its text as it is
    assert found.rows[0]["target"] == {"no": no, "vendor": "Acme Ltd", "total": 1250.5, "day": "2026-05-03"}


@pytest.mark.parametrize(
    ("answer", "kind", "columns"),
    [
        (lambda i: {"people": i}, "extract", {"text": "text", "target": "reply"}),
        (lambda i: json.dumps({"people": i}), "extract", {"text": "text", "target": "reply"}),
        (lambda i: LABELS[i : i + 2], "classify", {"text": "text", "labels": "reply"}),
    ],
)
def test_json_is_a_target_and_lists_are_labels(write: Write, answer: Any, kind: str, columns: Row) -> None:
    found = read(write("rows.jsonl", [{"text": TEXTS[i], "reply": answer(i)} for i in range(40)]))
    assert (found.kind, found.columns) == (kind, columns)


def test_questions_on_a_passage_keep_it(write: Write) -> None:
    rows = [{"id": i, "context": f"{t}. " * 9, "question": t, "final_decision": ("yes", "no")[i % 2]}
            for i, t in enumerate(TEXTS)]  # fmt: skip
    found = read(write("rows.jsonl", rows))
    assert (found.kind, found.others) == ("answer", ())
    assert found.columns == {"question": "question", "answer": "final_decision", "context": "context"}


def test_a_chat_file_whose_answers_are_few_is_a_classification_and_its_system_prompt_is_kept(write: Write) -> None:
    found = read(write("rows.jsonl", [{"messages": chat(t, c)} for t, c in zip(TEXTS, LABELS, strict=True)]))
    assert found.kind == "classify"
    assert found.rows[1] == {"text": TEXTS[1], "label": "refund"}
    assert found.converted.about == SYSTEM


def test_conversations_with_functions_are_told_to_be_calls_and_not_read_as_texts_alone(write: Write) -> None:
    source = read_source(str(write("calls.jsonl", assistant_rows(30))))
    for chosen in ({}, {"kind": "call"}):
        with pytest.raises(ConfigError, match="a task of kind call") as error:
            guess(source, chosen, "calls.jsonl")
        assert "smallfirst init FOLDER --kind call" in str(error.value.hint)
    assert guess(source, {"kind": "chat"}, "calls.jsonl").kind == "chat"


def test_a_log_of_requests_gives_what_varies_and_the_labels_that_its_prompts_spell(write: Write) -> None:
    said = ["Refund", "refund.", "REFUND"]
    log = [{"request": request(i), "response": response(said[i // 3 % 3] if c == "refund" else c)}
           for i, c in enumerate(LABELS)]  # fmt: skip
    log[0]["response"] = response("card arr", "length")
    log[3]["response"] = response("Sorry, I cannot tell.")
    log[6]["request"]["messages"][0]["content"] = "an entirely different prompt"
    found = read(write("log.jsonl", log))
    assert (found.kind, len(found.rows)) == ("classify", 57)
    assert found.rows[0] == {"text": TEXTS[1], "label": "refund"}
    assert {row["label"] for row in found.rows} == set(INTENTS)
    assert sorted((problem.line, problem.rule.partition(":")[0]) for problem in found.unused) == [
        (1, "the answer was cut off"),
        (4, "none of the answers that the others repeat, or the instructions name"),
        (7, "the prompt follows another template than the others"),
    ]
    assert found.converted.model == "large-1"


def test_batch_files_are_joined_by_their_ids_in_any_order(write: Write) -> None:
    asked = [{"custom_id": f"r{i}", "method": "POST", "body": {"messages": chat(t, "")[:2]}}
             for i, t in enumerate(TEXTS)]  # fmt: skip
    answers = [{"custom_id": f"r{i}", "response": {"status_code": 200, "body": response(c)}, "error": None}
               for i, c in enumerate(LABELS)]  # fmt: skip
    answers[5] |= {"response": None, "error": {"code": "batch_expired"}}
    write("batch/in.jsonl", asked)
    path = write("batch/out.jsonl", answers[::-1])
    found = read(path.parent)
    assert found.rows[0] == {"text": TEXTS[0], "label": "card arrival"}
    assert [(problem.line, problem.rule) for problem in found.unused] == [(6, "it failed: batch_expired")]
    with pytest.raises(ConfigError, match="a batch file of responses alone"):
        read(path)


def test_label_studio(write: Write) -> None:
    def task(i: int, **result: Any) -> Row:
        return {"id": i, "data": {"text": TEXTS[i]}, "annotations": [{"result": [result], "was_cancelled": i == 4}]}

    rows = [task(i, from_name="intent", type="choices", value={"choices": [LABELS[i]]}) for i in range(40)]
    rows[7]["annotations"].append({"result": [{"from_name": "intent", "type": "choices", "value": {"choices": ["x"]}}]})
    found = read(write("export.json", rows))
    assert (found.kind, found.columns) == ("classify", {"text": "text", "label": "intent"})
    assert [problem.rule for problem in found.unused] == ["no person's answer", "people gave different answers"]
    spans = [task(i, from_name="part", type="labels", value={"text": LABELS[i], "labels": ["topic"]}) for i in range(9)]
    assert read(write("spans.json", spans)).rows[1] == {"text": TEXTS[1], "target": {"topic": "refund"}}


def test_argilla(write: Write) -> None:
    def record(i: int) -> Row:
        answers = {"intent": [{"value": LABELS[i], "user_id": "u1"}]} if i != 2 else {}
        return {"id": i, "fields": {"utterance": TEXTS[i]}, "responses": answers, "suggestions": {"intent": {}}}

    found = read(write("records.json", [record(i) for i in range(40)]))
    assert (found.kind, found.columns) == ("classify", {"text": "utterance", "label": "intent"})
    assert (len(found.rows), [problem.rule for problem in found.unused]) == (39, ["no person's answer"])


def test_a_document_of_paragraphs_with_questions(write: Write) -> None:
    def paragraph(i: int) -> Row:
        answers = [{"text": f"on day {i}", "answer_start": 9}, {"text": f"day {i}", "answer_start": 12}]
        return {"context": f"It comes on day {i}.", "qas": [{"question": f"{TEXTS[i]}?", "answers": answers}]}

    found = read(write("squad.json", {"data": [{"paragraphs": [paragraph(i) for i in range(20)]}]}))
    assert found.kind == "answer"
    assert found.rows[3]["answer"] == ["on day 3", "day 3"]


def test_a_folder_with_train_and_test_files_is_read_as_these(write: Write) -> None:
    rows = [{"text": t, "label": c} for t, c in zip(TEXTS, LABELS, strict=True)]
    for name in ("train", "test"):
        path = write(f"set/{name}.jsonl", rows)
    found = read(path.parent)
    assert (found.kind, sorted(found.source.parts), len(found.rows)) == ("classify", ["test", "train"], 60)
    (path.parent / "dev.jsonl").symlink_to(write("elsewhere.jsonl", rows))
    with pytest.raises(DataError, match=r"dev\.jsonl: a link that leads out of the folder"):
        read(path.parent)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": t} for t in TEXTS], "smallfirst jobs create rows.jsonl"),
        ([{"id": i, "when": "2026-09-01"} for i in range(9)], "nothing tells what is asked"),
        ([{f"c{i}": "a b c" for i in range(201)}], "201 columns; of more than 200 it is not guessed"),
    ],
)
def test_rows_that_cannot_be_a_task_are_refused_with_what_there_is(write: Write, rows: list[Row], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read(write("rows.jsonl", rows))
