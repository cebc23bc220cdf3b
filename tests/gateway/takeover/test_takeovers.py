"""The file of what was taken over: one task changes at a time, and a wrong name gets a hint."""

from __future__ import annotations

import pytest

from smallfirst.errors import ConfigError
from smallfirst.gateway.takeover.takeovers import TakeOver, TakeOvers


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


def test_a_task_that_was_not_learnt_is_refused_with_its_nearest_name(tmp_path):
    file = TakeOvers(tmp_path / "takeovers.json")
    file.put(TakeOver(task="tickets", folder=tmp_path))
    with pytest.raises(ConfigError, match=r"ticket was not learnt.*tickets"):
        file.get("ticket")
