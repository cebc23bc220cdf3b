import asyncio
import socket
from pathlib import Path

import pytest

from smallfirst.gateway.app import Gateway
from tests.fixtures.cli import call, failed


def test_a_missing_file_names_the_way_without_one(tmp_path: Path) -> None:
    said = failed(call("proxy", tmp_path / "gateway.yaml"), 2)
    assert said == (
        f"ConfigError: {tmp_path}/gateway.yaml: no such file\n"
        "  next: smallfirst proxy --upstream https://api.openai.com/v1\n"
    )


def test_a_wrong_setting_is_named_with_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("upstreams: {big: {base_url: example.com}}\nmodels: {gpt-4o: bg}\n")
    assert "upstreams.big.base_url: must be a full address" in failed(call("proxy", file), 2)
    file.write_text("upstreams: {big: {base_url: https://example.com/v1}}\nmodels: {gpt-4o: bg}\n")
    assert "no upstream is called 'bg' — did you mean \"big\"?" in failed(call("proxy", file), 2)


def test_what_is_kept_is_said_before_the_first_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def run(gateway: Gateway, listener: socket.socket) -> None:
        kept.append(gateway.capture is not None)
        listener.close()
        asyncio.run(gateway.aclose())

    monkeypatch.setattr("smallfirst.gateway.server.run", run)
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--capture",)):
        result = call("proxy", "--upstream", "https://example.com/v1", "--port", "0", *more)
        assert result.exit_code == 0, result.output
        passes, keeps, page, export = result.output.splitlines()
        address = passes.split()[2]
        assert passes == f"smallfirst passes {address} on to https://example.com/v1"
        assert keeps.startswith("kept in " if more else "nothing is kept of it")
        assert page == f"its page: {address.removesuffix('v1')}"
        assert export == f"in the application:  export OPENAI_BASE_URL={address}"
    assert kept == [False, True]
