"""A task is forgotten: what it has left goes, what was paid for stays, and nobody uses it meanwhile."""

import asyncio
from pathlib import Path

import pytest
from fixtures.cli import call, failed, row
from fixtures.deployment import NAME, Desk

from smallfirst.base.errors import ConfigError, RegistryError, TrainingError
from smallfirst.base.paths import home
from smallfirst.deployment.task_deployment import TargetVersions, TaskDeployment
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import LedgerRow
from smallfirst.path.project.run_folder import RunFolder, only_run
from smallfirst.registry import runs, versions
from smallfirst.traffic.forget import forget
from smallfirst.traffic.task_source import TakeOver, TakeOvers


@pytest.fixture
def used(desk: Desk, ledger: Ledger) -> Desk:
    """Two versions, the first one live; a text kept of it and of another task; a paid answer and a look."""
    desk.register(0)
    desk.register(1)
    versions.promote(NAME, 1)
    ledger.append(row("a", request_text="[]", answer_text="lost_pin"))
    ledger.append(row("b", task="other", answer_text="kept"))
    for place in ("tasks/toy/looks.json", "recordings/toy/one.jsonl"):
        (home() / place).parent.mkdir(parents=True, exist_ok=True)
        (home() / place).write_text("{}", encoding="utf-8")
    return desk


def test_what_is_listed_is_deleted_and_what_was_paid_or_counts_stays(used: Desk, ledger: Ledger) -> None:
    run_ids = [one.run_id for one in versions.list_versions(NAME)]
    listed = call("forget", used.path, "--dry-run").output
    for part in (f"{NAME}, version 1 (champion), 2\n", "2 runs in MLflow  ", "2 run folders in", "texts of 1 answers"):
        assert part in listed
    for part in ("looks.json: how often", "recordings/toy: was paid for", "of 1 answers, with expenses"):
        assert part in listed
    error = failed(call("forget", used.path), 2)
    assert "nobody can be asked here\n  next: the same command with --yes" in error
    assert len(versions.list_versions(NAME)) == 2

    assert call("forget", used.path, "--yes").output.startswith("toy is forgotten: ")
    with pytest.raises(RegistryError, match=f"no model is registered as {NAME}"):
        versions.list_versions(NAME)
    assert not any(runs.run_files(id) for id in run_ids)
    assert runs.client().get_run(run_ids[0]).info.lifecycle_stage == "deleted"
    assert {path.name for path in (home() / "tasks" / "toy").iterdir()} == {"looks.json", "run.lock", "served.lock"}
    assert [(one.id, one.answer_text) for one in ledger.entries(LedgerRow)] == [("a", None), ("b", "kept")]
    assert used.path.exists()
    assert (home() / "recordings" / "toy").exists()
    assert call("forget", used.path).output.startswith("toy has left nothing\n")
    call("forget", used.path, "--yes", "--answers")
    assert not (home() / "recordings" / "toy").exists()


def test_versions_of_another_task_under_the_same_name_stay(used: Desk) -> None:
    versions.tag(NAME, 2, {"task": "other"})
    forget(used.path)
    assert [one.version for one in versions.list_versions(NAME)] == [2]


def test_a_task_that_is_served_trained_or_taken_over_is_left_alone(used: Desk, ledger: Ledger) -> None:
    deployed = TaskDeployment(used.file, ledger).load(TargetVersions(1))
    for carry_out in (False, True):
        with pytest.raises(ConfigError, match="toy is being served"):
            forget(used.path, carry_out=carry_out)
    asyncio.run(deployed.aclose())
    with only_run("toy"), pytest.raises(TrainingError, match="a run of toy is under way"):
        forget(used.path, carry_out=False)
    learnt = TakeOvers()
    learnt.put(TakeOver(task="toy", folder=Path("/elsewhere"), state="live"))
    assert len(list((home() / "tasks" / "toy").glob("*/"))) == 2
    forget(used.path)  # the name is that of a task elsewhere
    assert "toy" in learnt.read()


def test_a_learnt_task_leaves_the_proxy(used: Desk, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    (draft / "learnt").mkdir(parents=True)
    text = used.path.read_text(encoding="utf-8")
    for place in (draft, draft / "learnt"):
        (place / "task.yaml").write_text(text, encoding="utf-8")
    learnt = TakeOvers()
    learnt.put(TakeOver(task="toy", folder=draft, state="live"))
    assert "toy is taken over\n  next: smallfirst give-back toy" in failed(call("forget", draft, "--yes"), 2)
    learnt.put(TakeOver(task="toy", folder=draft))
    assert "its place among the learnt tasks" in call("forget", draft, "--dry-run").output
    forget(draft)
    assert not learnt.read()
    with pytest.raises(RegistryError):
        versions.list_versions(NAME)
    assert RunFolder.unfinished("toy") is None
