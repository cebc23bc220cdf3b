"""Candidates: which ones a project measures."""

from pathlib import Path

import pytest
from fixtures.preflight import task_of

from smallfirst.base.errors import ConfigError
from smallfirst.path.project.candidates import project_candidates


def names(folder: Path, kind: str, **settings: object) -> list[str]:
    answer = {"classify": ("label", ["card", "fee"]), "extract": ("target", [{"item": "card"}, {"item": "fee"}])}[kind]
    rows = [{"text": f"number {i}", answer[0]: answer[1][i % 2]} for i in range(40)]
    project = task_of(folder, {"train": rows}, kind=kind, **settings)
    return [candidate.name for candidate in project_candidates(project)]


def test_the_ladder_is_in_order_of_size_and_names_everything(tmp_path: Path) -> None:
    every = ["words", "encoder", "tuned", "larger_encoder", "larger_tuned", "blend"]
    assert names(tmp_path, "classify") == names(tmp_path, "classify", minutes=20) == every
    chosen = ["larger_tuned", "tuned", "larger_encoder", "words"]
    assert names(tmp_path, "classify", ladder=chosen) == ["words", "tuned", "larger_encoder", "larger_tuned"]
    assert names(tmp_path, "extract") == ["tagger", "small"]


def test_a_candidate_that_does_not_fit_the_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ladder: words: it needs a closed set of answers; this task of kind"):
        names(tmp_path, "extract", ladder=["words", "small"])
    rows = [{"text": f"page one\fpage two of {i}", "target": {"tone": f"tone {i // 2}"}} for i in range(40)]
    with pytest.raises(
        ConfigError, match=r"no candidate suits these rows: .*tagger: .*tone.*small: it reads short texts"
    ):
        project_candidates(task_of(tmp_path / "paged", {"train": rows}, kind="extract"))


def test_a_language_model_learns_labels_only_where_the_task_asks_for_one(tmp_path: Path) -> None:
    for asked in ({"small": {"training": {"duration": "1ep"}}}, {"routing": {"small": "small"}}):
        assert names(tmp_path, "classify", **asked)[-1] == "small"
    assert "small" not in names(tmp_path, "classify", small={"encoder": "another"})


def test_beside_an_encoder_of_the_file_s_own_no_larger_one_is_measured_unless_the_file_names_it(tmp_path: Path) -> None:
    own = names(tmp_path, "classify", small={"encoder": "another"})
    assert own == ["words", "encoder", "tuned", "blend"]
    both = names(tmp_path, "classify", small={"encoder": "another", "larger_encoder": "a-third"})
    assert {"larger_encoder", "larger_tuned"} <= set(both)
