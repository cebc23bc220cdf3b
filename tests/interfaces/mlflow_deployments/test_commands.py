"""The command over endpoints on disk, and what is refused before any process is looked at."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner
from fixtures.endpoints import on_disk

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.files import try_lock
from smallfirst.interfaces.mlflow_deployments import lifecycle as endpoints
from smallfirst.interfaces.mlflow_deployments.commands import endpoints as command
from smallfirst.paths import home


def test_the_command_lists_what_is_there() -> None:
    run = CliRunner()
    assert "no endpoint yet" in run.invoke(command, []).output
    desk = on_disk("desk")
    lines = run.invoke(command, []).output.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "URL", "LOG"]
    assert lines[1].split() == ["desk", "NOT_READY", "http://127.0.0.1:9", str(desk.output)]
    assert '"config_version": 1' in run.invoke(command, ["--json"]).output
    assert run.invoke(command, ["stop", "desk"]).output == "desk: no server ran\n"


@pytest.mark.parametrize("name", ["../desk", "a/b", "..", "", "x" * 129])
def test_a_name_is_never_joined_into_a_path_unchecked(name: str) -> None:
    outside = home() / "desk"
    outside.mkdir()
    for work in (endpoints.find, endpoints.delete, endpoints.stop, endpoints.start):
        with pytest.raises(ConfigError, match="cannot be an endpoint's name"):
            work(name)
    assert outside.exists()


def test_an_unknown_endpoint_is_named_with_the_nearest_one() -> None:
    on_disk("desk")
    with pytest.raises(endpoints.EndpointNotFound, match='no endpoint is called "dsk" — did you mean "desk"'):
        endpoints.find("dsk")


def test_two_do_not_change_one_endpoint_at_once() -> None:
    desk = on_disk("desk")
    held = try_lock(desk.folder / "changing")
    assert held is not None
    try:
        with pytest.raises(SmallfirstError, match="being changed by another process"):
            endpoints.update("desk", {"tags": []})
    finally:
        os.close(held)
