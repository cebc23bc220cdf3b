"""A task without a large model, from its rows to a server: a foreign message never gets a certified label."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.preflight import write_task
from fixtures.server import run_server

from smallfirst.deployment.task_deployment import TaskDeployment
from smallfirst.ledger.ledger import Ledger
from smallfirst.path.project.run_folder import DomainCounts, RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.run import run
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.router import REFUSAL

THINGS = {
    "card": ("card", "debit card", "credit card", "new card", "bank card"),
    "fee": ("fee", "charge", "yearly fee", "hidden fee", "cost of the account"),
    "pin": ("pin", "secret code", "pin code", "passcode", "code of the card"),
}
WISHES = (
    "where is my {}", "i have a question about the {}", "the {} is wrong", "tell me about my {} please",
    "why did my {} change", "can i see the {} in the app", "please explain the {}", "i do not understand my {}",
)  # fmt: skip
ENDS = ("", " today", " now", " again", " thanks")
FOREIGN = (
    "write a poem about the sea in November for my grandmother",
    "how tall is the highest mountain of South America",
    "what is the best recipe for a lentil soup with carrots",
    "translate the first chapter of this novel into Portuguese",
)
ELSEWHERE = (
    "book a table by the window of the old harbour restaurant",
    "turn the lights of the living room down a bit",
    "play some quiet piano music in the kitchen",
    "how many calories does a slice of rye bread have",
)


def written(folder: Path) -> TaskFile:
    texts = [
        (f"{wish.format(name)}{end}", label)
        for label, of in THINGS.items()
        for name in of
        for wish in WISHES
        for end in ENDS
    ]
    texts += [(f"{text} for guest {i}", "oos") for text in ELSEWHERE for i in range(25)]
    rows = [{"text": text, "label": label} for text, label in texts]
    routing = {"out_of_scope": {}, "guarantee": {"max_error": 0.1}}
    return write_task(folder, {"train": rows}, data={"out_of_scope_label": "oos"}, ladder=["words"], routing=routing)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The address of the task, trained, certified and served."""
    file = written(tmp_path)
    run(file)
    ledger = Ledger(tmp_path / "ledger.db")
    task = TaskDeployment(file, ledger)
    deployed = task.load(task.target_versions())
    with run_server({"desk": deployed.router}, ledger) as server:
        yield f"http://127.0.0.1:{server.port}/v1/chat/completions"
    asyncio.run(deployed.aclose())
    ledger.close()


def ask(url: str, text: str, **more: Any) -> httpx.Response:
    body = {"model": "desk", "messages": [{"role": "user", "content": text}], **more}
    answer = httpx.post(url, json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer


def test_foreign_messages_are_refused_and_own_ones_answered_with_the_promise(url: str) -> None:
    certificate = Certificate.load(RunFolder.latest("desk").path / "certificate.json")
    assert certificate.issued
    assert certificate.filters["domain check"]
    counts = DomainCounts.load(RunFolder.latest("desk").path / "domain.json")
    assert (counts.n_own, counts.n_foreign, counts.foreign_from) == (120, 20, "test rows out of scope")
    assert counts.n_own_refused <= 0.02 * counts.n_own
    assert counts.n_caught + sum(counts.uncaught.values()) == counts.n_foreign
    assert counts.n_caught >= 15
    for text in FOREIGN:
        answer = ask(url, text).json()
        message, about = answer["choices"][0]["message"], answer["smallfirst"]
        assert (message["content"], message["refusal"]) == (None, REFUSAL)
        assert (about["route"], about["certified"]) == ("out_of_scope", False)
    own = ask(url, "where is my debit card today").json()
    assert own["choices"][0]["message"] == {"role": "assistant", "content": "card", "refusal": None, "annotations": []}
    assert (own["smallfirst"]["route"], own["smallfirst"]["certified"]) == ("small", True)
    events = [json.loads(line[6:]) for line in ask(url, FOREIGN[0], stream=True).text.splitlines() if "{" in line]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == ""
    assert [delta["refusal"] for delta in deltas if delta.get("refusal")] == [REFUSAL]
