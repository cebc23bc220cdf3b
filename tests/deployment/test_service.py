"""What a server is given: rules that lead somewhere, names of their own, a judge with the task's own eyes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smallfirst.base.errors import ConfigError, RegistryError, StageMissing
from smallfirst.base.paths import home
from smallfirst.base.records import parse_record
from smallfirst.deployment import service, task_deployment
from smallfirst.deployment.hot_swap import HotSwapModels
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.pricing import MachinePrice, PriceBook
from smallfirst.path import router_setup
from smallfirst.path.project.task_file import TaskFile
from smallfirst.routing.domain import PROFILE_FILE
from smallfirst.routing.policies import RulePolicy
from smallfirst.routing.router import Stage
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.extract import Extract


def task_file(**routing: Any) -> TaskFile:
    values = {"name": "desk", "data": {"train": Path("train.jsonl")}, "routing": routing}
    return parse_record(TaskFile, values, where="task.yaml")


def test_rules_come_from_the_task_file_with_the_price_of_the_large_model() -> None:
    policies = [{"kind": "rule", "to": "words"}]
    rules = router_setup.routing_rules(task_file(ahead=["words"], policies=policies), 0.5, Path())
    assert rules.policies == [RulePolicy(kind="rule", to="words")]
    assert rules.expected_cost_usd == {"large": 0.5}
    assert router_setup.routing_rules(task_file(), None, Path()).expected_cost_usd == {}


def test_a_canary_is_a_stage_beside_the_cascade_and_left_out_where_there_is_no_challenger(tmp_path: Path) -> None:
    file = task_file(policies=[{"kind": "split", "to": "challenger", "share": 0.1}, {"kind": "rule", "to": "large"}])
    alone = router_setup.routing_rules(file, None, tmp_path)
    assert [policy.to for policy in alone.policies] == ["large"]
    with pytest.raises(RegistryError):
        router_setup.challenger_stages(file)
    assert router_setup.challenger_stages(task_file()) == ()
    beside = (Stage("challenger", None),)  # type: ignore[arg-type]  # it is not asked here
    both = router_setup.routing_rules(file, None, tmp_path, beside)
    assert ([policy.to for policy in both.policies], both.policy_stages) == (["challenger", "large"], beside)


def test_who_drafts_last_cannot_draft_ahead_too() -> None:
    with pytest.raises(ConfigError, match=r"routing\.ahead: words is not smaller than words"):
        task_file(small="words", ahead=["words"])


def test_a_draft_holds_if_it_says_what_the_judge_says() -> None:
    holds = task_deployment._agreement(Classify(name="t", labels=("billing", "delivery")))
    assert holds("billing", "billing")
    assert not holds("billing", "delivery")
    assert not holds("billing", "no label at all")
    schema = {"type": "object", "properties": {"n": {"type": "string"}}, "additionalProperties": False}
    same = task_deployment._agreement(Extract(name="e", json_schema=schema))
    assert same('{"n": "two"}', '{ "n" : "two" }')
    assert not same('{"n": "two"}', '{"n": "three"}')


def test_two_tasks_of_one_name_and_a_task_called_auto_are_refused(tmp_path: Path) -> None:
    ledger = Ledger(home() / "ledger.db")
    auto = task_file().model_copy(update={"name": "auto"})
    with pytest.raises(ConfigError, match="two things would be served as 'auto'"):
        service.deploy([auto], ledger)
    ledger.close()


def test_without_a_champion_nothing_is_served(tmp_path: Path) -> None:
    ledger = Ledger(home() / "ledger.db")
    with pytest.raises((RegistryError, StageMissing)):
        service.deploy([task_file()], ledger)
    ledger.close()


def test_the_choice_of_the_task_is_billed_at_the_machine_price_of_the_first_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PROFILE_FILE).touch()
    priced = task_file().model_copy(update={"prices": PriceBook(machine=MachinePrice(usd_per_hour=7.0))})
    deployed = SimpleNamespace(profile_folder=tmp_path, encoder=None, router=SimpleNamespace(name="desk"))
    served = object.__new__(service.DeployedTasks)
    served.models = HotSwapModels()
    served._targets = {
        "desk": SimpleNamespace(deployed=deployed, deployment=SimpleNamespace(file=priced, general=None))
    }  # type: ignore[dict-item]
    given: list[MachinePrice] = []
    monkeypatch.setattr(service.TaskProfile, "load", lambda *folder_and_encoder: None)
    monkeypatch.setattr(service, "TaskSelector", lambda profiles, *, price: given.append(price))
    assert served._create_auto() is not None
    assert [price.usd_per_hour for price in given] == [7.0]
