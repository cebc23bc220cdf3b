"""Names that a task takes from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallfirst.project.names import registry_name, task_name


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("tickets", "tickets"),
        ("My Tickets", "my-tickets"),
        ("Réclamations_2026", "reclamations_2026"),
        ("-x-", "x"),
        ("a" * 80, "a" * 64),
        ("チケット", "task-cc3f69"),
    ],
)
def test_a_folder_name_becomes_a_valid_name(tmp_path: Path, folder: str, name: str) -> None:
    assert task_name(tmp_path / folder) == name


def test_the_current_folder_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Desk").mkdir()
    monkeypatch.chdir(tmp_path / "Desk")
    assert task_name(Path()) == "desk"


def test_a_registry_name_holds_no_further_dot() -> None:
    assert registry_name("my-tickets-2.0") == "main.default.my-tickets-2_0"
