"""Silent changes behind a taken-over task: requests until it steps back, and wrong answers given meanwhile.

    python -m benchmarks.serving.takeover FOLDER              # learns the task that is used here
    python -m benchmarks.serving.takeover_changes FOLDER [--repeats 10]

The learnt task answers recorded requests of the hosted model, drawn with replacement from the test rows; from request
1,001 on one thing changes. The same code answers as in the proxy, without sockets. Wrong is what differs from what the
upstream would have answered at that moment. FOLDER/changes.json holds the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.serving.takeover_upstream import ASKED, MODEL, Row, instructions, recorded, response
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Request
from smallfirst.routing.router import Decision, Router
from smallfirst.traffic.gateway.http import GatewayRequest, UpstreamAnswer
from smallfirst.traffic.gateway.tasks import TakenOverTasks
from smallfirst.traffic.gateway.upstreams import Target
from smallfirst.traffic.task_source import TakeOvers

CHANGE_AT = 1_000
MOST = 4_000
"""Requests after a change that are waited for."""
AUDIT_SHARES = (0.02, 0.1)
AUDITED = ("model, unnamed", "traffic")
"""Changes that only audits and drift can show."""
Answer = Callable[[Row], tuple[str, str]]
"""What the upstream answers to a row: text and model name."""


class World:
    """The application and its upstream, which one change turns into others."""

    def __init__(self, rows: list[Row], seed: int) -> None:
        self.rows, self.draw = rows, random.Random(seed)
        self.system, self.suffix = instructions(), ""
        self.by_text = {row["text"]: row for row in rows}
        self.answer: Answer = lambda row: (row["answer"], MODEL)

    def request(self) -> tuple[Row, GatewayRequest]:
        row = self.draw.choice(self.rows)
        messages = [{"role": "system", "content": self.system}, {"role": "user", "content": row["text"] + self.suffix}]
        body = {"model": ASKED, "messages": messages, "temperature": 0, "max_tokens": 20}
        asked = GatewayRequest("POST", "/v1/chat/completions", b"", [], json.dumps(body).encode())
        return row, asked

    def response(self, row: Row) -> UpstreamAnswer:
        text, model = self.answer(row)
        return UpstreamAnswer(200, [], json.dumps(response(row, model=model, answer=text)).encode(), "default", 0.0)

    def own_target(self, request: GatewayRequest, model: str) -> Target:
        return Target("default")

    def accepts(self, request: GatewayRequest, target: Target, model: str) -> bool:
        return True

    async def ask(self, request: GatewayRequest) -> UpstreamAnswer:
        text = json.loads(request.body)["messages"][-1]["content"].removesuffix(self.suffix)
        return self.response(self.by_text[text])


def gold(row: Row) -> str:
    """What a better model answers: the right intent. It differs from the recorded answer on 26 % of the rows."""
    text: str = row["label"].replace("_", " ")
    return text


def model_by_name(world: World) -> None:
    world.answer = lambda row: (gold(row), f"{MODEL}-1130")


def model_unnamed(world: World) -> None:
    world.answer = lambda row: (gold(row), MODEL)


def prompt(world: World) -> None:
    world.system += "\nIf several fit, choose the first."


def prompt_in_slot(world: World) -> None:
    world.suffix = "\n(Answer with the first intent that fits.)"


def traffic(world: World) -> None:
    """Only the 15 intents on which the hosted model is wrong most often."""
    wrong = Counter(row["label"] for row in world.rows if gold(row) != row["answer"])
    of = Counter(row["label"] for row in world.rows)
    hardest = sorted(of, key=lambda label: -wrong[label] / of[label])[:15]
    world.rows = [row for row in world.rows if row["label"] in hardest]


CHANGES: dict[str, Callable[[World], None]] = {
    "nothing": lambda _: None,
    "model, named": model_by_name,
    "model, unnamed": model_unnamed,
    "prompt": prompt,
    "prompt, inside the slot": prompt_in_slot,
    "traffic": traffic,
}


_decided: dict[str, Decision] = {}
"""Decisions by text: the same model decides in every repetition, so it is asked each text once."""


def remember(router: Router) -> None:
    decide = router.decide

    async def remembered(request: Request, *, paused: str = "") -> Decision:
        if paused:
            return await decide(request, paused=paused)
        if request.text not in _decided:
            _decided[request.text] = await decide(request)
        return _decided[request.text]

    router.decide = remembered  # type: ignore[method-assign]


async def follow(place: Path, task: Path, rows: list[Row], change: str, seed: int, share: float) -> dict[str, Any]:
    """Serve until the task steps back or MOST requests have passed since the change."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    learnt = TakeOvers(task.parent.parent / ".smallfirst" / "takeovers.json").get(task.name)
    file = TakeOvers(place / "takeovers.json")
    file.put(learnt.moved("live", cause="person", why="benchmark", share=1.0))
    tasks, world = TakenOverTasks(Ledger(place / "ledger.db"), file, poll_interval_s=1e9), World(rows, seed)
    await tasks.start()
    live = tasks.tasks[task.name]
    remember(live.router.router)
    for start in range(0, len(rows), 64):
        texts = (Request.ask(row["text"]) for row in rows[start : start + 64])
        await asyncio.gather(*map(live.router.router.decide, texts))
    monitor = live.router.monitor
    monitor.settings = monitor.settings.model_copy(update={"audit_share": share})
    found: dict[str, Any] = {"change": change, "seed": seed, "audit_share": share, "small": 0, "wrong": 0}
    for number in range(1, CHANGE_AT + MOST + 1):
        if number == CHANGE_AT + 1:
            found |= {"small_before": found["small"], "wrong_before": found["wrong"], "small": 0, "wrong": 0}
            CHANGES[change](world)
        row, request = world.request()
        small = await tasks.answer(request, world)  # type: ignore[arg-type]
        if small is not None:
            assert isinstance(small.body, bytes)
            said = json.loads(small.body)["choices"][0]["message"]["content"]
            found["small"] += 1
            found["wrong"] += said != world.answer(row)[0]
        elif request.watched is not None:
            await tasks.passed(request, world.response(row))
        await asyncio.sleep(0)
        while live.router._tasks:
            await asyncio.sleep(0)
        live._follow_monitor()
        if live.taken.state != "live":
            found |= {"stepped_back_at": number - CHANGE_AT, "cause": live.taken.cause, "why": live.taken.why}
            break
    found["state"] = live.taken.state
    found["alarms"] = [one.why for one in monitor.alarms]
    await tasks.aclose()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    (source,) = (arguments.folder / "way-1" / "discovered").glob("*/source.json")
    rows, results = recorded("test"), list[dict[str, Any]]()
    for seed in range(arguments.repeats):
        for change in CHANGES:
            for share in AUDIT_SHARES if change in AUDITED else AUDIT_SHARES[:1]:
                results.append(
                    asyncio.run(follow(arguments.folder / "changes", source.parent, rows, change, seed, share))
                )
                (arguments.folder / "changes.json").write_text(json.dumps(results, indent=1))
                shown = ("stepped_back_at", "small", "wrong", "why")
                print(change, share, *(results[-1].get(name) for name in shown), flush=True)


if __name__ == "__main__":
    main()
