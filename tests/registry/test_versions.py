"""The registry over a real MLflow SQLite store: succession, refusals, damage and kills."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.errors import GateFailed, RegistryError
from smallfirst.measuring.verdict import CheckResult, Verdict, override
from smallfirst.registry import versions
from smallfirst.registry.runs import client, open_run
from smallfirst.registry.versions import (
    ModelVersion,
    attach,
    build_manifest,
    check_name,
    list_versions,
    promote,
    read_attachment,
    register,
    resolve,
    rollback,
    upload,
)

NAME = "main.claims.tickets"
GOOD = CheckResult(requirement="accuracy at least 0.900", measured="0.95 n=600", passed=True)
SLOW = CheckResult(
    requirement="p95 latency at most 5 ms", measured="9.0 ms n=600", passed=False, advice="a smaller model would help"
)
PASSED = Verdict(candidate="small", checks=(GOOD,), passed=True, evaluation_fingerprint="e1")
FAILED = Verdict(candidate="small", checks=(GOOD, SLOW), passed=False, evaluation_fingerprint="e1")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder of one test, with a path that needs quoting."""
    folder = tmp_path / "state #1 ä"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    monkeypatch.setenv("SMALLFIRST_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"\x01" * 1000)
    (folder / "config.json").write_text('{"labels": ["a", "b"]}')
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    return folder


def new_version(model: Path, *, name: str = NAME) -> ModelVersion:
    return register(model, PASSED, name=name, run_id=None, tags={})


def test_three_level_names_with_dots_work_and_the_version_holds_files_and_evidence(model: Path) -> None:
    with open_run("tickets", "train") as run:
        made = register(model, PASSED, name=NAME, run_id=run.run_id, tags={"base": "tiny"})
    (model / "config.json").write_text("changed after registration")
    found = resolve("main.claims.tickets/1")
    assert found == made
    assert (found.name, found.version, found.aliases, found.run_id) == (NAME, 1, (), run.run_id)
    assert (found.folder / "config.json").read_text() == '{"labels": ["a", "b"]}'
    assert (found.folder / "tokenizer" / "vocab.json").read_text() == "{}"
    assert found.tags["base"] == "tiny"
    assert found.tags["candidate"] == "small"
    assert found.tags["evaluation_fingerprint"] == "e1"
    assert Verdict.model_validate(json.loads(found.tags["verdict"])) == PASSED
    assert "signed_by" not in found.tags


def test_promote_twice_and_roll_back_and_forth(model: Path) -> None:
    for _ in range(3):
        new_version(model)
    assert promote(NAME, 1).aliases == ("champion",)
    with pytest.raises(RegistryError, match="no earlier champion to roll back to"):
        rollback(NAME)
    assert promote(NAME, 2).aliases == ("champion",)
    assert resolve(f"{NAME}@previous").version == 1
    assert promote(NAME, 3).version == 3
    assert resolve(f"{NAME}@previous").version == 2

    back = rollback(NAME)
    assert (back.version, back.aliases) == (2, ("champion",))
    assert resolve(NAME).version == 2
    assert resolve(f"{NAME}@previous").version == 3
    assert rollback(NAME).version == 3
    assert [(v.version, v.aliases) for v in list_versions(NAME)] == [(1, ()), (2, ("previous",)), (3, ("champion",))]


def test_a_version_of_which_nothing_may_be_answered_leaves_the_champion_alone(model: Path) -> None:
    for _ in range(2):
        new_version(model)
    promote(NAME, 1)
    versions.name_shadow(NAME, 2)
    versions.tag(NAME, 2, {"outcome": "cannot be told yet", "sentence": "x" * 9000})
    assert [(v.version, v.aliases) for v in list_versions(NAME)] == [(1, ("champion",)), (2, ("shadow",))]
    tags = resolve(f"{NAME}@shadow").tags
    assert (tags["outcome"], len(tags["sentence"])) == ("cannot be told yet", 5000)


MOVES: dict[str, Callable[[], ModelVersion]] = {
    "promote 3": lambda: promote(NAME, 3),
    "promote 1": lambda: promote(NAME, 1),
    "rollback": lambda: rollback(NAME),
}


@pytest.mark.parametrize(
    ("first", "other"), [("promote 3", "rollback"), ("rollback", "promote 3"), ("promote 1", "promote 3")]
)
def test_of_two_that_move_the_champion_at_once_one_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, first: str, other: str
) -> None:
    for _ in range(3):
        new_version(model)
    promote(NAME, 1)
    promote(NAME, 2)
    refusals: list[str] = []
    verify = versions.verify

    def meanwhile(*args: Any, **more: Any) -> None:
        monkeypatch.setattr(versions, "verify", verify)
        try:
            MOVES[other]()
        except RegistryError as error:
            refusals.append(str(error))
        verify(*args, **more)

    monkeypatch.setattr(versions, "verify", meanwhile)  # it runs between the look at the aliases and their move
    moved = MOVES[first]()
    assert "is being promoted or rolled back by another process" in refusals[0]
    assert (resolve(NAME), resolve(f"{NAME}@previous").version) == (moved, 2)


def test_a_champion_that_another_machine_changes_meanwhile_is_not_overwritten(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        new_version(model)
    promote(NAME, 1)
    verify = versions.verify

    def meanwhile(*args: Any, **more: Any) -> None:
        client().set_registered_model_alias(NAME, "champion", "3")  # no lock reaches from machine to machine
        verify(*args, **more)

    monkeypatch.setattr(versions, "verify", meanwhile)
    with pytest.raises(RegistryError, match="champion is version 3 now, it was version 1"):
        promote(NAME, 2)
    assert resolve(NAME).version == 3


def test_a_signed_verdict_is_registered_and_shows_the_signature(model: Path) -> None:
    [signed] = override([FAILED], FAILED.candidate, by="Ada", because="night batch")
    register(model, signed, name=NAME, run_id=None, tags={"signed_by": "nobody"})
    tags = resolve(f"{NAME}/1").tags
    assert (tags["signed_by"], tags["because"]) == ("Ada", "night batch")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "weights.safetensors").write_bytes(b"\x02" * 1000), "was changed: weights"),
        (lambda f: (f / "tokenizer" / "vocab.json").unlink(), "is incomplete: tokenizer/vocab.json"),
        (lambda f: (f / "extra.json").touch(), "was changed: extra.json was added"),
        (lambda f: (f / "smallfirst-manifest.json").unlink(), "is incomplete: it has no"),
        (lambda f: (f / "smallfirst-manifest.json").write_text("{"), "is incomplete: it has no"),
        (lambda f: measure_again(f), "its manifest is not the registered one"),
        (lambda f: shutil.rmtree(f), "is incomplete: it has no"),
    ],
)
def test_damaged_files_are_never_resolved_nor_promoted(
    model: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(new_version(model).folder)
    with pytest.raises(RegistryError, match=says):
        resolve(f"{NAME}/1")
    with pytest.raises(RegistryError):
        promote(NAME, 1)
    assert list_versions(NAME)[0].aliases == ()


def measure_again(folder: Path) -> None:
    """Change a file and forge the manifest to match."""
    (folder / "config.json").write_text("{}")
    build_manifest(folder).save(folder / "smallfirst-manifest.json")


def test_a_kill_between_copy_and_version_leaves_nothing_to_resolve(model: Path) -> None:
    with open_run("tickets", "train") as run:
        orphan = upload(run.run_id, model, build_manifest(model))  # where register() was cut off
    assert (orphan.folder() / "weights.safetensors").is_file()
    with pytest.raises(RegistryError, match="no model is registered as main"):
        resolve(f"{NAME}/1")
    assert new_version(model).version == 1


def test_a_kill_between_the_two_aliases_leaves_the_old_champion(model: Path) -> None:
    for _ in range(2):
        new_version(model)
    promote(NAME, 1)
    client().set_registered_model_alias(NAME, "previous", "1")  # where promote(2) was cut off
    assert resolve(NAME).version == 1
    with pytest.raises(RegistryError, match=f"next: promote one of its versions: {NAME}/1, {NAME}/2"):
        rollback(NAME)
    promote(NAME, 2)
    assert resolve(f"{NAME}@previous").version == 1


def test_a_project_that_was_moved_keeps_its_models(model: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(NAME, new_version(model).version)
    moved = state.rename(state.with_name("elsewhere"))
    monkeypatch.setenv("SMALLFIRST_HOME", str(moved))
    assert resolve(NAME).folder.is_relative_to(moved)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("main.claims.tickts", 'no model is registered as main.claims.tickts — did you mean "main'),
        ("main.claims.tickets@champoin", 'called "champoin" — did you mean "champion"?'),
        ("main.claims.tickets/9", "main.claims.tickets has no version 9\n  next: use one of: main"),
        ("main.claims.tickets/one", '"one" is not a version number of main.claims.tickets'),
        ("tickets@champion", '"tickets" is not a model name'),
    ],
)
def test_a_wrong_reference_is_answered_with_the_nearest_right_one(model: Path, reference: str, says: str) -> None:
    promote(NAME, new_version(model).version)
    with pytest.raises(RegistryError) as caught:
        resolve(reference)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "name", ["claims.tickets", "a.b.c.d", "main.claims.my tickets", "../../etc", "main.claims.x' OR '1", ""]
)
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(RegistryError, match="is not a model name: it needs three parts"):
        check_name(name)


@pytest.mark.parametrize("file", ["weights.bin", "model.pt", "model.pkl", "classifier.joblib"])
def test_formats_that_run_code_when_loaded_are_not_stored(model: Path, file: str) -> None:
    (model / file).write_bytes(b"\x80\x04")
    with pytest.raises(RegistryError, match=f"{file} has a format that is not stored"):
        new_version(model)


def test_links_and_empty_folders_are_not_stored(model: Path, tmp_path: Path) -> None:
    (model / "passwords.txt").symlink_to("/etc/passwd")
    with pytest.raises(RegistryError, match=r"passwords\.txt is a link"):
        new_version(model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RegistryError, match="is empty"):
        new_version(tmp_path / "empty")
    with pytest.raises(RegistryError, match="is not a folder"):
        new_version(tmp_path / "missing")


def test_attachments_are_replaced_and_leave_the_model_sealed(model: Path) -> None:
    new_version(model)
    assert read_attachment(NAME, 1, "certificate.json") is None
    attach(NAME, 1, "certificate.json", b"one")
    attach(NAME, 1, "certificate.json", b"two")
    assert read_attachment(NAME, 1, "certificate.json") == b"two"
    assert resolve(f"{NAME}/1").version == 1
    with pytest.raises(RegistryError, match="has no version 2"):
        attach(NAME, 2, "certificate.json", b"")


def test_a_failed_verdict_is_refused_with_its_failing_lines_only(model: Path) -> None:
    with pytest.raises(GateFailed, match=r"not registered\n  FAIL  p95 latency at most 5 ms: 9\.0 ms n=600\n"):
        register(model, FAILED, name=NAME, run_id=None, tags={})
    with pytest.raises(RegistryError, match="no model is registered"):
        list_versions(NAME)


def test_a_damaged_former_champion_does_not_come_back(model: Path) -> None:
    for _ in range(2):
        promote(NAME, new_version(model).version)
    (resolve(f"{NAME}/1").folder / "config.json").write_text("{}")
    with pytest.raises(RegistryError, match=r"config\.json is not the registered file"):
        rollback(NAME)
    assert resolve(NAME).version == 2
