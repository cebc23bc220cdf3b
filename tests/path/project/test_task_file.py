"""task.yaml: every wrong setting named at once, and rows split so that nothing is used twice."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.data.dataset import Dataset
from smallfirst.path.project.rows import read_rows, read_task
from smallfirst.path.project.task_file import TaskFile, read_task_file, task_name

LABELS = ("card", "fee", "pin")
MINIMAL = "name: desk\ndata: {train: train.jsonl}\n"


def write_rows(path: Path, numbers: Iterable[int]) -> None:
    rows = ({"text": f"question {i} about a thing", "label": LABELS[i % 3]} for i in numbers)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def written(folder: Path, text: str = MINIMAL) -> Path:
    (folder / "task.yaml").write_text(text)
    return folder / "task.yaml"


def read(folder: Path, text: str = MINIMAL) -> TaskFile:
    return read_task_file(written(folder, text))


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_task_file(path)
    return str(caught.value)


def texts(data: Dataset) -> set[str]:
    return {example.text for example in data.examples}


def test_a_short_file_is_enough_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    task_file = read(tmp_path)
    assert task_file.path(task_file.data.train) == tmp_path / "train.jsonl"
    assert task_file.path(Path("/elsewhere/rows.csv")) == Path("/elsewhere/rows.csv")
    assert read_task_file(tmp_path) == task_file  # the folder stands for the file in it


def test_a_task_without_names_takes_those_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "My Tickets 2.0"
    folder.mkdir()
    task_file = read(folder, "data: {train: train.jsonl}\n")
    assert (task_file.name, task_file.register_to) == ("my-tickets-2.0", "main.default.my-tickets-2_0")
    assert read(folder, "name: Desk.1\ndata: {train: train.jsonl}\n").register_to == "main.default.Desk_1"
    assert read(folder, MINIMAL + "register_to: a.b.c\n").register_to == "a.b.c"


@pytest.mark.parametrize("setting", ["method: lora", "micro_tokens: 64"])
def test_settings_of_language_models_are_refused_for_encoders(tmp_path: Path, setting: str) -> None:
    path = written(tmp_path, MINIMAL + f"small: {{encoder_training: {{duration: 2ep, {setting}}}}}\n")
    wrong = f"small.encoder_training: an encoder is fine-tuned whole; leave out {setting.partition(':')[0]}"
    assert wrong in refused(path)
    assert read(tmp_path, MINIMAL + f"small: {{training: {{{setting}}}}}\n")


def test_every_unknown_setting_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "name: desk\n"
        "data: {train: train.jsonl, trian: x, columns: {lable: category}}\n"
        "small: {training: {learning_rat: 0.1}}\n"
        "routing: {guarantee: {maxerror: 0.01}}\n"
        "gate: {accuracy_at_lest: 0.9}\n"
        "seed: 3\n"
        "colour: red\n",
    )
    assert refused(path) == (
        f"{path}:\n"
        '  data.columns.lable: unknown setting — did you mean "label"?\n'
        '  data.trian: unknown setting — did you mean "train"?\n'
        '  small.training.learning_rat: unknown setting — did you mean "learning_rate"?\n'
        '  gate.accuracy_at_lest: unknown setting — did you mean "accuracy_at_least"?\n'
        '  routing.guarantee.maxerror: unknown setting — did you mean "max_error"?\n'
        "  seed: unknown setting; write small: {training: {seed: …}}\n"
        "  colour: unknown setting"
    )


def test_settings_that_are_missing_or_out_of_range_are_named_with_their_value(tmp_path: Path) -> None:
    path = written(
        tmp_path, "data: {}\nrouting: {guarantee: {confidence: 2}}\nsmall: {training: {duration: 8 epochs}}\n"
    )
    assert refused(path) == (
        f"{path}:\n"
        "  data.train: missing\n"
        '  small.training.duration: "8 epochs" is not a duration; write 8ep (epochs), 300ba (batches) or 1_000_000tok '
        "(got '8 epochs')\n"
        "  routing.guarantee.confidence: Input should be less than 1 (got 2)"
    )


@pytest.mark.parametrize(
    ("large", "rule"),
    [
        ("{shots_per_label: 1}", "give endpoint, gguf, engine or recorded"),
        ("{gguf: x, endpoint: {base_url: 'http://127.0.0.1:1/v1', model: m}}", "give one of endpoint, gguf and engine"),
    ],
)
def test_a_large_path_that_nobody_or_two_would_answer_is_refused(tmp_path: Path, large: str, rule: str) -> None:
    path = written(tmp_path, f"{MINIMAL}large: {large}\n")
    assert refused(path) == f"{path}:\n  large: {rule}"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("routing: {second_look_after: 500}", "right is what people say"),
        ("routing: {second_look_after: 500, labels: large, guarantee: {per_group: label}}", "only max_error over all"),
        ("routing: {second_look_after: 500, labels: large, guarantee: {max_wrong_fields: 0.1}}", "only max_error over"),
        ("routing: {second_look_after: 500, labels: large, ahead: [words], small: tuned}", "one model drafts"),
    ],
)
def test_a_second_look_is_refused_where_shadow_cannot_say_what_is_right(tmp_path: Path, more: str, why: str) -> None:
    said = refused(written(tmp_path, f"{MINIMAL}{more}\n"))
    assert "routing.second_look_after: " in said
    assert why in said
    assert read(tmp_path, f"{MINIMAL}routing: {{second_look_after: 500, labels: large}}\n")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("routing: {guarantee: {most_of_group: 2}}", "routing.guarantee.most_of_group: a run sets it"),
        (
            "kind: call\nrouting: {guarantee: {max_accuracy_loss: 0.02}}",
            "routing.guarantee: kind call promises max_error",
        ),
        ("kind: call\nrouting: {guarantee: {per_group: label}}", "routing.guarantee: kind call promises max_error"),
        ("kind: call\nrouting: {ahead: [words], small: tuned}", "routing.ahead: kind call promises max_error"),
    ],
)
def test_a_guarantee_that_nobody_would_keep_is_refused(tmp_path: Path, more: str, why: str) -> None:
    assert why in refused(written(tmp_path, f"{MINIMAL}{more}\n"))
    assert read(tmp_path, f"{MINIMAL}kind: call\nrouting: {{guarantee: {{max_error: 0.02}}}}\n")


def test_a_file_that_is_missing_or_holds_no_settings_is_named(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    assert refused(path) == f"{path}: no such file\n  next: smallfirst init   writes a commented task.yaml"
    assert refused(written(tmp_path, "- a\n- b\n")) == f"{path}: expected settings by name, found list"
    assert "data: missing" in refused(written(tmp_path, ""))
    assert refused(written(tmp_path, "name: [")).startswith(f"{path}: not readable as YAML: ")


@pytest.mark.parametrize("labels", ["[yes, no]", "{yes: agreed, no: not agreed}"])
def test_a_bare_yes_or_no_as_label_is_refused_and_not_read_as_true(tmp_path: Path, labels: str) -> None:
    path = written(tmp_path, f"{MINIMAL}labels: {labels}\n")
    assert refused(path) == (
        f"{path}:\n  labels.0: Input should be a valid string (got True)\n"
        "  labels.1: Input should be a valid string (got False)"
    )


def test_parts_that_are_left_out_are_split_off_and_share_no_text(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [*range(600), *range(0, 600, 7)])  # some texts twice
    rows = read_rows(read(tmp_path))
    parts = [texts(part) for part in (rows.train, rows.selection, rows.calibration, rows.test)]
    assert set.union(*parts) == {f"question {i} about a thing" for i in range(600)}
    assert sum(len(part) for part in parts) == 600  # disjoint
    # 20 % each, the fifth of validation apart: four standard deviations of 600 draws are 39 rows.
    assert len(parts[3]) == pytest.approx(120, abs=39)
    assert len(parts[1] | parts[2]) == pytest.approx(120, abs=39)
    assert 5 <= len(parts[1]) < len(parts[2])


def test_a_label_of_the_validation_rows_must_be_one_of_the_training_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", (0, 1, 3, 4))
    write_rows(tmp_path / "validation.jsonl", (0, 2))
    with pytest.raises(DataError, match=r'validation\.jsonl:2  label "pin" is not one of the 2 labels'):
        read_rows(read(tmp_path, "name: desk\ndata: {train: train.jsonl, validation: validation.jsonl}"))


def test_without_labels_the_task_has_those_of_all_rows_and_a_label_of_one_row_is_to_train_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", (i for i in range(200) if i % 3 != 2))
    for i in range(50):
        with (tmp_path / "train.jsonl").open("a") as file:
            file.write(json.dumps({"text": f"rare {i}", "label": f"rare-{i}"}) + "\n")
    task_file = read(tmp_path)
    rows = read_rows(task_file)
    task = read_task(task_file, rows)
    assert set(task.labels) == {"card", "fee", *(f"rare-{i}" for i in range(50))}
    assert list(task.labels) == sorted(task.labels)
    assert set(rows.train.labels()) == set(task.labels)


def test_the_ladder_says_what_is_trained_and_what_can_go_live(tmp_path: Path) -> None:
    assert read(tmp_path).goes_live == "best"
    assert read(tmp_path, MINIMAL + "ladder: [words, encoder]\n").goes_live == "best"
    assert read(tmp_path, MINIMAL + "routing: {small: small}\n").goes_live == "small"
    cases = {
        "ladder: [word]\n": 'ladder: "word" is no candidate — did you mean "words"?',
        "ladder: []\n": "name a candidate: ",
        "ladder: [words]\nrouting: {small: encoder}\n": "routing.small: encoder is not on the ladder: add it to ladder",
        "routing: {small: words, ahead: [encoder]}\n": "routing.ahead: encoder is not smaller than words",
        "ladder: [small]\nrouting: {ahead: [words]}\n": "routing.ahead: words is not on the ladder: add it to ladder",
    }
    for text, message in cases.items():
        assert message in refused(written(tmp_path, MINIMAL + text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {train: t.jsonl, out_of_scope_label: oos}\nlabels: [a, oos]\n", '"oos" is in labels or other'),
        ("data: {train: t.jsonl, out_of_scope_label: oos}\nother: oos\n", '"oos" is in labels or other'),
        ("data: {train: t.jsonl}\nrouting: {domain: {refuse_own_at_most: 2}}\n", "refuse_own_at_most"),
        ("data: {train: t.jsonl}\nrouting: {domain: strict}\n", "routing.domain.mode"),
    ],
)
def test_settings_of_foreign_requests_that_contradict_or_do_not_exist_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in refused(written(tmp_path, text))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, False),
        ({"large": {"recorded": "large.jsonl"}}, True),
        ({"large": {"recorded": "large.jsonl"}, "routing": {"domain": "off"}}, False),
        ({"routing": {"domain": "scored"}}, True),
        ({"routing": {"guarantee": {"max_error": 0.1, "max_foreign_share": 0.05}}}, True),
        ({"data": {"train": "train.jsonl", "open_ended": "open.jsonl"}}, True),
        ({"data": {"train": "train.jsonl", "out_of_scope_label": "oos"}}, True),
        ({"routing": {"domain": {"refuse_own_at_most": 0.05}}}, True),
        ({"routing": {"domain": {"mode": "off"}, "out_of_scope": {"refuse": True}}}, False),
        ({"routing": {"domain": False}, "large": {"recorded": "large.jsonl"}}, False),  # YAML reads a bare off so
    ],
)
def test_foreign_requests_are_told_apart_only_where_somebody_answers_them_or_asked_for_it(
    settings: dict[str, Any], told: bool
) -> None:
    file = TaskFile.model_validate({"name": "desk", "data": {"train": "train.jsonl"}} | settings)
    assert file.tells_foreign_requests is told


@pytest.mark.parametrize(("folder", "name"), [
    ("tickets", "tickets"), ("My Tickets", "my-tickets"), ("Réclamations_2026", "reclamations_2026"),
    ("-x-", "x"), ("a" * 80, "a" * 64), ("チケット", "task-cc3f69"),
])  # fmt: skip
def test_a_folder_name_becomes_a_valid_name(tmp_path: Path, folder: str, name: str) -> None:
    assert task_name(tmp_path / folder) == name
