"""The files that a request passes through behind the proxy, passed on or answered small: few, and documented."""

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fixtures.endpoints import completion, http_server
from fixtures.takeover import SYSTEM, TEACHER, LearntTask, cases

from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.traffic.gateway.access import Access
from smallfirst.traffic.gateway.app import Gateway
from smallfirst.traffic.gateway.capture import Capture
from smallfirst.traffic.gateway.tasks import TakenOverTasks
from smallfirst.traffic.settings import GatewaySettings
from tests.architecture.test_request_path import DOCUMENT, entered_files

MOST_PASSED, MOST_TAKEN_OVER = 11, 28
CERTAIN = [text for text, _ in cases(40, seed=5)]


def files_behind(learnt: LearntTask, tmp_path: Path, system: str) -> tuple[set[str], httpx.Response]:
    """Return the files that each of some equal requests enters, the first aside: not what a clock starts meanwhile."""

    async def ask() -> tuple[set[str], httpx.Response]:
        upstream = {"base_url": f"{address}/v1"}
        settings = GatewaySettings.model_validate({"upstreams": {"default": upstream}, "capture": {}})
        ledger, keys = Ledger(tmp_path / "ledger.db"), KeyStore(tmp_path / "keys.db")
        ledger.start()
        _, key = keys.create("desk", KeyPolicy())
        capture = Capture(settings, settings.capture, tmp_path)
        access = Access(keys)
        gateway = Gateway(settings, local=TakenOverTasks(ledger, learnt.takeovers), capture=capture, access=access)
        await gateway.start()
        headers = {"x-smallfirst-key": key, "authorization": "Bearer sk-of-the-client"}
        transport = httpx.ASGITransport(gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            found: list[set[str]] = []
            with entered_files() as entered:
                for text in CERTAIN[:4]:
                    entered.clear()
                    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Message: {text}"}]
                    body: dict[str, Any] = {"model": "big", "messages": messages}
                    response = await client.post("/v1/chat/completions", json=body)
                    await gateway.local._background.wait()  # type: ignore[union-attr]
                    found.append(set(entered))
        await gateway.aclose()
        return set.intersection(*found[1:]), response

    with http_server(lambda *_: (200, completion("Queue: cards", TEACHER))) as address:
        return asyncio.run(ask())


@pytest.fixture
def live(learnt: LearntTask, tmp_path: Path) -> LearntTask:
    """The learnt task, taken over whole, of whose answers hardly any is audited."""
    folder = Path(shutil.copytree(learnt.folder, tmp_path / "queues"))
    file = folder / "learnt" / "task.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["routing"]["monitor"] = {"audit_share": 1e-9}
    file.write_text(yaml.safe_dump(settings))
    taken = learnt.takeovers.get("queues").moved("live", cause="person", why="test", share=1.0)
    learnt.takeovers.put(taken.model_copy(update={"folder": folder}))
    return learnt


@pytest.mark.parametrize(
    ("system", "heading", "most", "small"),
    [
        ("Write a poem.", "## Passed on by the proxy", MOST_PASSED, False),
        (SYSTEM, "## Taken over behind the proxy", MOST_TAKEN_OVER, True),
    ],
)
def test_a_proxied_request_passes_through_few_files_and_these_are_documented(
    live: LearntTask, tmp_path: Path, system: str, heading: str, most: int, small: bool
) -> None:
    entered, response = files_behind(live, tmp_path, system)
    assert (response.status_code, "x-smallfirst-task" in response.headers) == (200, small)
    section = DOCUMENT.read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
    documented = re.findall(r"^\d+\. `(smallfirst/[\w/]+\.py)`", section, re.MULTILINE)
    assert len(entered) <= most, sorted(entered)
    assert sorted(file for file in entered if file.split("/")[1] in ("gateway", "traffic")) == sorted(documented)
