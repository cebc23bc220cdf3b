"""Retention from scores and from probes, by hand."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from smallfirst.errors import ConfigError, DataError
from smallfirst.evaluation.retention import (
    Probe,
    ProbeResult,
    Question,
    RetentionByKind,
    model_fingerprint,
    read_probe,
    retention_from_probes,
    run_probe,
)

PROBE = Probe(
    name="eight",
    questions=(
        *(Question(prompt=f"a{i}", answer=("x",), wrong=("y", "z", "w"), kind="four") for i in range(6)),
        *(Question(prompt=f"b{i}", answer=("x",), wrong=("y",), kind="two") for i in range(2)),
    ),
)


def result(*right: int) -> ProbeResult:
    answers = tuple(bool(value) for value in right)
    return ProbeResult(model="m", model_fingerprint="f", probe_fingerprint=PROBE.fingerprint(), right=answers)


def test_guessing_scores_nothing() -> None:
    # A wrong one of four scores -1/3, a wrong one of two -1.
    found = retention_from_probes(PROBE, result(1, 1, 1, 1, 1, 1, 1, 0), result(1, 1, 1, 0, 0, 0, 0, 0))
    assert found.before == pytest.approx((7 - 1) / 8)
    assert found.after == pytest.approx((3 - 3 / 3 - 2) / 8)
    assert found.kept is not None
    assert found.kept.value == pytest.approx(0.0)
    assert found.prompts == "eight"
    assert found.parts == (
        RetentionByKind(kind="four", n=6, n_before=6, n_after=3),
        RetentionByKind(kind="two", n=2, n_before=1, n_after=0),
    )


def test_right_answers_are_compared_pair_by_pair() -> None:
    before, after = result(1, 1, 1, 1, 1, 1, 1, 1), result(1, 1, 1, 1, 0, 0, 1, 1)
    found = retention_from_probes(PROBE, before, after)
    assert (found.right_before, found.right_after) == (before.accuracy, after.accuracy)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(-0.25)
    # Agresti and Min by hand: 10 pairs, two at -1, half a pair at each of +1 and -1: mean -0.2, E[d²] 0.3.
    assert found.difference.low == pytest.approx(-0.2 - 1.959964 * (0.26 / 10) ** 0.5, abs=1e-6)
    assert found.kept is not None
    assert found.kept.value == pytest.approx((6 - 2 / 3) / 8)


def test_few_questions_that_all_stay_right_leave_no_spread() -> None:
    found = retention_from_probes(PROBE, result(*[1] * 8), result(*[1] * 8)).kept
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 8)


def test_results_of_other_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="the same prompts before and after"):
        retention_from_probes(
            PROBE, result(*[1] * 8), result(*[1] * 8).model_copy(update={"probe_fingerprint": "other"})
        )


def test_a_base_model_that_guesses_has_nothing_to_keep() -> None:
    found = retention_from_probes(PROBE, result(1, 1, 0, 0, 0, 0, 1, 0), result(1, 1, 1, 1, 1, 1, 1, 1))
    assert found.kept is None
    assert found.before == pytest.approx((3 - 4 / 3 - 1) / 8)


def written(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return path


def test_our_own_questions_can_be_asked() -> None:
    probe = read_probe()
    kinds = Counter(question.kind for question in probe.questions)
    assert set(kinds) == {"arithmetic", "knowledge", "copying", "ordering", "yes or no", "format"}
    assert min(kinds.values()) >= 6
    assert len({question.prompt for question in probe.questions}) == len(probe.questions) == 72
    for question in probe.questions:
        assert len(question.wrong) == (1 if question.kind == "yes or no" else 3)
        assert len({*question.wrong}) == len(question.wrong)
    yes = sum(question.answer[0].startswith("Yes") for question in probe.questions if question.kind == "yes or no")
    assert yes * 2 == kinds["yes or no"]  # who always says yes is right half the time


def test_arithmetic_of_our_own_is_right() -> None:
    for question in read_probe().questions:
        if question.kind == "arithmetic":
            sums = {text: text.replace("x", "*").split(" = ") for text in (*question.answer, *question.wrong)}
            right = {text for text, (left, value) in sums.items() if eval(left) == float(value)}
            assert right == {*question.answer}


def test_a_file_of_questions_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path / "own.jsonl",
        {"prompt": "Sky?", "answer": "blue", "wrong": ["red", "green"], "kind": "colour"},
        "",
        {"prompt": "Grass?", "answer": ["green", "greenish"]},
        {"prompt": "Snow?", "answer": "white"},
    )
    probe = read_probe(path)
    assert probe.name == "own.jsonl"
    sky, grass, snow = probe.questions
    assert (sky.answer, sky.wrong, sky.kind) == (("blue",), ("red", "green"), "colour")
    # Without wrong answers of its own: right answers of the others, never its own.
    assert {*grass.wrong} == {"blue", "white"}
    assert {*snow.wrong} == {"blue", "green"}
    assert (sky.chance, grass.chance) == (1 / 3, 1 / 2)
    assert read_probe(path) == probe


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = written(
        tmp_path / "own.jsonl",
        {"prompt": "Sky?", "answer": "blue", "wrong": ["blue"]},
        {"prompt": "", "answer": "x", "wrong": ["y"]},
        "not json",
        {"promt": "Sky?", "answer": "x", "wrong": ["y"]},
        {"prompt": "Sky?", "answer": [], "wrong": ["y"]},
        {"prompt": "Sky?", "answer": "blue", "wrong": ["red"]},
    )
    with pytest.raises(DataError) as caught:
        read_probe(path)
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3, 4, 5]
    rules = [problem.rule for problem in caught.value.problems]
    assert rules[0] == '"blue" is listed as right and as wrong'
    assert rules[2].startswith("not readable as JSON")
    assert 'did you mean "prompt"?' in rules[3]


def test_a_question_without_any_wrong_answer_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "own.jsonl", {"prompt": "Sky?", "answer": "blue"}, {"prompt": "Sea?", "answer": "blue"})
    with pytest.raises(DataError, match=r"own.jsonl:1 .*no wrong answer here") as caught:
        read_probe(path)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), (b"\xff\xfe", "UTF-8"), (b"\n", "no questions")])
def test_a_file_that_holds_no_questions_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "own.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_probe(path)


def test_the_model_is_right_where_the_right_answer_is_the_likeliest(tiny_folder: Path) -> None:
    answers = ("card", "refund", "late", "exchange")
    asked = tuple(
        Question(prompt="what is it", answer=(right,), wrong=tuple(a for a in answers if a != right))
        for right in answers
    )
    result = run_probe(Probe(name="four", questions=asked), tiny_folder, name="tiny")
    assert sum(result.right) == 1  # one of four answers to the same question is the likeliest
    best = answers[result.right.index(True)]
    other, *rest = [answer for answer in answers if answer != best]
    either = Question(prompt="what is it", answer=(other, best), wrong=tuple(rest))
    assert run_probe(Probe(name="two", questions=(either,)), tiny_folder, name="tiny").right == (True,)
    assert result.model == "tiny"
    assert (result.accuracy.value, result.accuracy.n) == (0.25, 4)


def test_equally_likely_answers_are_not_right(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    shutil.copytree(tiny_folder, folder)
    weights = {name: tensor * 0 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert not any(run_probe(read_probe(), folder, name="flat").right)


def test_a_result_tells_model_and_questions_apart(tiny_folder: Path, tmp_path: Path) -> None:
    probe = Probe(name="one", questions=(Question(prompt="a", answer=("b",), wrong=("c",)),))
    result = run_probe(probe, tiny_folder, name="tiny")
    assert result.probe_fingerprint == probe.fingerprint()
    assert result.model_fingerprint == model_fingerprint(tiny_folder)
    assert ProbeResult.model_validate_json(result.model_dump_json()) == result
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    assert model_fingerprint(other) == model_fingerprint(tiny_folder)
    (other / "notes.txt").write_text("nothing", encoding="utf-8")
    assert model_fingerprint(other) == model_fingerprint(tiny_folder)
    (other / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert model_fingerprint(other) != model_fingerprint(tiny_folder)
