from __future__ import annotations

import stat
from pathlib import Path

import pytest

from smallfirst.cluster.ray_session import TOKEN_FILE, prepare_environment
from smallfirst.errors import ConfigError

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in TOKENS:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))


def test_a_running_cluster_without_a_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        prepare_environment("head:6379")


def test_a_local_cluster_gets_a_token_that_only_its_user_can_read(tmp_path: Path) -> None:
    prepare_environment(None)
    path = tmp_path / TOKEN_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    assert len(first) == 64
    prepare_environment(None)
    assert path.read_text() == first
