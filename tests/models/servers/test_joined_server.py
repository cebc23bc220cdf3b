"""A vLLM that runs elsewhere: what is read of it, and what is refused while it is away or too busy."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.event_loop import in_loop
from fixtures.vllm_server import ScriptedVllm

from smallfirst.errors import Unavailable
from smallfirst.models.servers import joined_server
from smallfirst.models.servers.joined_server import JoinedServer, Load, post_adapter


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_server, "LOOK_EVERY_S", 0.0)


@pytest.fixture
def server(vllm: ScriptedVllm) -> JoinedServer:
    return JoinedServer(vllm.url, "", name="base", max_waiting=10)


@in_loop
async def test_load_is_read_and_too_long_a_queue_refuses(vllm: ScriptedVllm, server: JoinedServer) -> None:
    await server.process()
    assert server.load == Load(running=3, waiting=0, kv_cache=0.5)
    vllm.n_waiting = 10
    with pytest.raises(Unavailable, match="base is busy: 10 requests wait inside the vLLM"):
        await server.process()


@in_loop
async def test_server_that_is_away_is_said_to_be_and_used_again_when_it_is_back(
    vllm: ScriptedVllm, server: JoinedServer, tmp_path: Path
) -> None:
    await post_adapter(server, "a", tmp_path, timeout_s=60)
    assert server.adapters == {"a"}
    vllm.stop()
    with pytest.raises(Unavailable, match=f"the vLLM at {vllm.url} does not answer"):
        await server.process()
    assert not server.adapters  # whoever comes back has none
    vllm.start()
    assert await server.process() is server


@in_loop
async def test_adapter_that_is_there_is_taken_and_one_that_cannot_be_loaded_says_what_to_do(
    vllm: ScriptedVllm, server: JoinedServer, tmp_path: Path
) -> None:
    vllm.adapters["a"] = "loaded by another gateway"
    await post_adapter(server, "a", tmp_path, timeout_s=60)
    vllm.loads_adapters = False
    with pytest.raises(Unavailable, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1") as caught:
        await post_adapter(server, "b", tmp_path, timeout_s=60)
    assert f"--lora-modules b={tmp_path}" in str(caught.value)
