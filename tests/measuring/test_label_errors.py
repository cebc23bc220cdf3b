"""Suspects by hand, label errors put into clean rows and found again, and the file that a person fills in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.errors import DataError
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.label_errors import Suspect, apply_relabels, find_label_errors, write_suspects

Given = tuple[str | None, float | None]
"""An answer and its confidence."""


def predictions(candidate: str, golds: dict[str, str], given: dict[str, Given]) -> Evaluation:
    """One candidate's answers and confidences."""
    rows = [evaluated_row(key, golds[key], answer, confidence=sure) for key, (answer, sure) in given.items()]
    return evaluation_of(rows, candidate=candidate)


GOLD = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b", "b3": "b", "x": "b"}
CLEAN: dict[str, Given] = {key: (GOLD[key], 0.6) for key in ("a1", "a2", "a3", "b1", "b2", "b3")}


def test_a_row_is_suspect_from_the_mean_confidence_of_the_predicted_label() -> None:
    # "a" is said of rows given as a with 0.6 on average: 0.6 is sure, 0.59 is not.
    (found,) = find_label_errors([predictions("small", GOLD, CLEAN | {"x": ("a", 0.6)})])
    assert found == Suspect(
        key="x", text="text of x", gold="b", said="a", confidence=0.6, agrees=("small",), evidence=0.6
    )
    assert find_label_errors([predictions("small", GOLD, CLEAN | {"x": ("a", 0.59)})]) == ()


def test_each_candidate_that_agrees_raises_a_row_and_one_that_gives_the_gold_answer_lowers_it() -> None:
    alone = predictions("small", GOLD, CLEAN | {"x": ("a", 0.8)})
    with_it = predictions("words", GOLD, {"x": ("a", 0.3)})
    unsure_of_it = predictions("large", GOLD, {"x": ("a", None)})
    against_it = predictions("encoder", GOLD, {"x": ("b", 0.5)})
    evidence = [
        find_label_errors(list(evaluations))[0].evidence
        for evaluations in ([alone, with_it, unsure_of_it], [alone, with_it], [alone], [alone, against_it])
    ]
    assert evidence == pytest.approx([0.8 + 0.3 + 0.5, 0.8 + 0.3, 0.8, 0.8 - 0.5])
    assert find_label_errors([alone, with_it, unsure_of_it])[0].agrees == ("small", "large", "words")
    assert find_label_errors([alone, predictions("encoder", GOLD, {"x": ("b", 0.8)})]) == ()


def test_three_unsure_candidates_make_a_label_suspect_and_two_do_not() -> None:
    unsure = [predictions(name, GOLD, CLEAN | {"x": ("a", 0.4)}) for name in ("words", "encoder", "small")]
    assert find_label_errors(unsure[:2]) == ()
    (found,) = find_label_errors(unsure)
    assert found.agrees == ("encoder", "small", "words")


def test_where_answers_are_texts_two_that_agree_are_enough_and_one_is_not() -> None:
    golds = {"q1": "in four days", "q2": "no"}
    small = predictions("small", golds, {"q1": ("in five days", 0.99), "q2": ("no", 0.9)})
    large = predictions("large", golds, {"q1": ("in five days", None), "q2": ("never", None)})
    assert find_label_errors([small]) == ()
    (found,) = find_label_errors([small, large])
    assert (found.key, found.said, found.confidence) == ("q1", "in five days", 0.99)


def test_wrong_labels_put_into_clean_rows_are_found_first() -> None:
    draw, labels = np.random.default_rng(1), ("a", "b", "c", "d")
    truth = {f"r{i:03}": labels[i % 4] for i in range(400)}
    wrong = {key for i, key in enumerate(truth) if i % 19 == 0}
    golds = {key: labels[(labels.index(t) + 1) % 4] if key in wrong else t for key, t in truth.items()}

    def model(accuracy: float) -> dict[str, Given]:
        said: dict[str, Given] = {}
        for key, t in truth.items():
            right = bool(draw.random() < accuracy)
            confidence = float(draw.beta(12, 2) if right else draw.beta(3, 3))
            said[key] = (t if right else labels[(labels.index(t) + 2) % 4], confidence)
        return said

    candidates = [predictions("words", golds, model(0.8)), predictions("small", golds, model(0.9))]
    found = find_label_errors(candidates, most=20)
    assert find_label_errors(candidates, most=3) == found[:3]
    hits = sum(s.key in wrong for s in found)
    assert hits >= 0.9 * len(found)
    assert hits >= 0.6 * len(wrong)
    assert [s.evidence for s in found] == sorted((s.evidence for s in found), reverse=True)


def example(text: str, answer: str, *, also: tuple[str, ...] = ()) -> Example:
    return Example(messages=(Message(role="user", content=text),), answer=answer, also=also, shape="label", line=7)


DATA = Dataset(name="test.jsonl", examples=(example("one", "a"), example("two\u2028lines", "b", also=("c",))))


def suspect(of: Example, said: str) -> Suspect:
    return Suspect(key=of.key, text=of.text, gold=of.answer, said=said, confidence=0.9, agrees=("small",), evidence=1.0)


def filled(path: Path, answers: dict[str, str]) -> None:
    """Fill in answers by text, as a person would."""
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    for line in lines:
        line["answer"] = answers.get(line["text"], line["answer"])
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def test_a_file_goes_to_a_person_and_comes_back_as_new_answers(tmp_path: Path) -> None:
    one, two = DATA.examples
    path = write_suspects([suspect(one, "b"), suspect(two, "c")], tmp_path / "suspects.jsonl")
    first = json.loads(path.read_text().split("\n")[0])
    assert first == {"key": one.key, "text": "one", "given": "a", "suggested": "b", "answer": ""}
    assert apply_relabels(DATA, path) == DATA
    filled(path, {"two\u2028lines": " c "})
    corrected = apply_relabels(DATA, path, labels=("a", "b", "c"))
    assert corrected.examples[0] == one
    assert (corrected.examples[1].answer, corrected.examples[1].also, corrected.examples[1].line) == ("c", (), 7)
    assert corrected.examples[1].key == example("two\u2028lines", "c").key
    assert corrected.content_fingerprint != DATA.content_fingerprint
    assert apply_relabels(corrected, path) == corrected


def test_exporting_again_loses_no_answer(tmp_path: Path) -> None:
    one, two = DATA.examples
    path = write_suspects([suspect(one, "b"), suspect(two, "c")], tmp_path / "suspects.jsonl")
    filled(path, {"one": "b"})
    write_suspects([suspect(two, "a")], path)
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [(line["text"], line["suggested"], line["answer"]) for line in lines] == [
        ("two\u2028lines", "a", ""),
        ("one", "b", "b"),
    ]
    write_suspects([suspect(one, "c")], path)
    assert [json.loads(line)["answer"] for line in path.read_text().split("\n") if line] == ["b"]


def test_every_bad_line_is_named_with_its_file_and_place(tmp_path: Path) -> None:
    path = tmp_path / "suspects.jsonl"
    path.write_text('{"key": "k", "text": 3, "given": "a", "answer": "b"}\n\n{oops\n["a"]\n')
    with pytest.raises(DataError, match="3 lines cannot be used") as caught:
        apply_relabels(DATA, path)
    assert [(p.line, p.path) for p in caught.value.problems] == [(n, str(path)) for n in (1, 3, 4)]
    rules = [p.rule for p in caught.value.problems]
    assert rules[0] == "text: Input should be a valid string (got 3); suggested: missing"
    assert rules[1].startswith("not readable as JSON: ")
    assert rules[2] == "not readable as JSON: not an object"


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
