"""The file of what was taken over: one task changes at a time, and a wrong name gets a hint."""

from __future__ import annotations

import pytest
from fixtures.takeover import source

from smallfirst.base.errors import ConfigError
from smallfirst.traffic.task_source import SOURCE_FILE, FormatCheck, TakeOver, TakeOvers


def test_a_change_leaves_the_other_tasks_as_they_are(tmp_path):
    file = TakeOvers(tmp_path / "state" / "takeovers.json")
    assert file.read() == {}
    assert file.stamp == 0
    first = file.put(TakeOver(task="tickets", folder=tmp_path, version=1))
    file.put(TakeOver(task="intents", folder=tmp_path, version=2))
    live = file.put(first.moved("live", cause="person", why="taken over", share=0.3))
    assert file.get("tickets") == live
    assert live.live_share == 0.3
    assert live.moved("stepped back", cause="model", why="another model").live_share == 0
    assert file.get("intents").state == "shadow"
    assert file.stamp > 0


def test_a_second_tenant_ends_for_all_what_the_first_ends_for_itself(tmp_path):
    file = TakeOvers(tmp_path / "takeovers.json")
    live = TakeOver(task="tickets", folder=tmp_path).moved("live", cause="person", why="taken over", share=1.0)
    assert live.stepped_back("ada", "prompt", "A", one_tenant=True).why == "A"
    file.put(live)
    for _ in range(2):
        file.update("tickets", lambda known: known.stepped_back("ada", "prompt", "A", one_tenant=False))
    alone = file.get("tickets")
    assert (alone.live_share, alone.changed_at) == (1.0, live.changed_at)
    assert (alone.tenant_back.tenant, alone.tenant_back.cause, alone.tenant_back.why) == ("ada", "prompt", "A")
    paused = alone.moved("stepped back", cause="guarantee", why="audits").moved("live", cause="guarantee", why="audits")
    assert paused.tenant_back == alone.tenant_back
    assert alone.moved("live", cause="person", why="again").tenant_back is None
    both = alone.stepped_back("bob", "model", "B", one_tenant=False)
    assert (both.state, both.cause, both.why) == ("stepped back", "model", "B; tenant ada had stepped back: A")
    assert both.stepped_back("eve", "model", "C", one_tenant=False) == both


def test_a_task_that_was_not_learnt_is_refused_with_its_nearest_name(tmp_path):
    file = TakeOvers(tmp_path / "takeovers.json")
    file.put(TakeOver(task="tickets", folder=tmp_path))
    with pytest.raises(ConfigError, match=r"ticket was not learnt.*tickets"):
        file.get("ticket")


def test_a_format_that_does_not_come_back_blocks_the_take_over_with_the_example(tmp_path):
    taken = TakeOver(task="queues", folder=tmp_path)
    taken.check_format()  # nothing is known against it
    source().save(tmp_path / SOURCE_FILE)
    taken.check_format()
    check = FormatCheck(n_answers=50, n_read=50, n_exact=48, recorded='{"sum": 644.90}', rendered='{"sum": 644.9}')
    source().model_copy(update={"format_check": check}).save(tmp_path / SOURCE_FILE)
    with pytest.raises(ConfigError, match=r"(?s)2 of 50 recorded answers.*644\.90.*644\.9") as refused:
        taken.check_format()
    assert "--accept-format" in str(refused.value)
