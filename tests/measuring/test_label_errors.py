"""The file of suspects, which a person fills in."""

import json
from pathlib import Path

import pytest
from fixtures.rows import example

from smallfirst.base.errors import DataError
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.label_errors import apply_relabels, suspect_line, write_suspects

DATA = Dataset(
    name="test.jsonl", examples=(example("one", "a", line=7), example("two\u2028lines", "b", also=("c",), line=7))
)


def filled(path: Path, answers: dict[str, str]) -> None:
    """Fill in answers by text, as a person would."""
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    for line in lines:
        line["answer"] = answers.get(line["text"], line["answer"])
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def test_a_file_goes_to_a_person_and_comes_back_as_new_answers(tmp_path: Path) -> None:
    one, two = DATA.examples
    path = write_suspects([suspect_line(one, "b"), suspect_line(two, "c")], tmp_path / "suspects.jsonl")
    first = json.loads(path.read_text().split("\n")[0])
    assert first == {"key": one.key, "text": "one", "given": "a", "suggested": "b", "answer": ""}
    assert apply_relabels(DATA, path) == DATA
    filled(path, {"two\u2028lines": " c "})
    corrected = apply_relabels(DATA, path, labels=("a", "b", "c"))
    assert corrected.examples[0] == one
    assert (corrected.examples[1].answer, corrected.examples[1].also, corrected.examples[1].line) == ("c", (), 7)
    assert corrected.examples[1].key == example("two\u2028lines", "c", line=7).key
    assert corrected.content_fingerprint != DATA.content_fingerprint
    assert apply_relabels(corrected, path) == corrected


def test_exporting_again_loses_no_answer(tmp_path: Path) -> None:
    one, two = DATA.examples
    path = write_suspects([suspect_line(one, "b"), suspect_line(two, "c")], tmp_path / "suspects.jsonl")
    filled(path, {"one": "b"})
    write_suspects([suspect_line(two, "a")], path)
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [(line["text"], line["suggested"], line["answer"]) for line in lines] == [
        ("two\u2028lines", "a", ""),
        ("one", "b", "b"),
    ]
    write_suspects([suspect_line(one, "c")], path)
    assert [json.loads(line)["answer"] for line in path.read_text().split("\n") if line] == ["b"]


def test_every_bad_line_is_named_with_its_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "suspects.jsonl"
    path.write_text('{"key": "k", "text": 3, "given": "a", "answer": "b"}\n\n{oops\n["a"]\n')
    with pytest.raises(DataError, match="3 lines cannot be used") as caught:
        apply_relabels(DATA, path)
    assert [(p.line, p.path) for p in caught.value.problems] == [(n, str(path)) for n in (1, 3, 4)]
    assert caught.value.problems[0].rule == "text: Input should be a valid string (got 3); suggested: missing"


def test_an_answer_that_cannot_be_placed_is_never_dropped(tmp_path: Path) -> None:
    one = DATA.examples[0]
    lines = [
        {"key": one.key, "text": "one", "given": "a", "suggested": "b", "answer": "b"},
        {"key": one.key, "text": "one", "given": "a", "suggested": "b", "answer": "c"},
        {"key": "0" * 16, "text": "gone", "given": "a", "suggested": "b", "answer": "b"},
        {"key": one.key, "text": "one", "given": "a", "suggested": "b", "answer": "bb"},
    ]
    path = tmp_path / "suspects.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError) as caught:
        apply_relabels(DATA, path, labels=("a", "b", "c"))
    assert [(p.line, p.rule) for p in caught.value.problems] == [
        (2, '"c", but an earlier line says "b"'),
        (3, f"no row of test.jsonl has the key {'0' * 16}"),
        (4, 'unknown label "bb" — did you mean "b"?'),
    ]
