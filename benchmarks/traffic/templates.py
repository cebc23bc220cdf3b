"""Templates found in a mixed log, beside `drain3` and `slmify`'s miner on the same requests.

    python -m benchmarks.traffic.templates METHOD COLLECTION SEED

METHOD is ours, ours_tasks, drain or slmify; COLLECTION is mixed, noise or acme (the log that slmify brings along, with its labels).
Prints the figures of one line of benchmarks/results/discovery.md. The peers, installed apart: `drain3` 0.9.11, `slmify` 0.2.0.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import homogeneity_completeness_v_measure

from benchmarks.traffic.mixed_log import mixed_log, noise_log
from smallfirst.traffic.discovery.mine import MIN_REQUESTS, Miner
from smallfirst.traffic.discovery.tasks import Case, find_tasks, read_cases
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.wire import read_answer, read_prompt

FOUND = 0.9
"""A wording is found if a group holds this share of its requests, and this share of the group is of the wording."""
NOISE = "noise"
CASE_FIELDS = {f"{name}{ending}" for name in ("text", "question", "context") for ending in ("", "_json")}
COLLECTIONS = ("mixed", "acme", "noise")


class Log(NamedTuple):
    """Requests, and which wording each follows; NOISE for none."""

    exchanges: Sequence[Exchange]
    wordings: Sequence[str]
    cases: Sequence[set[str]]
    """What a request asks about; empty where the log does not say."""


def read_log(collection: str, seed: int) -> Log:
    if collection == "acme":
        return _acme()
    entries = noise_log(seed) if collection == NOISE else mixed_log(seed)
    return Log(
        [entry.exchange for entry in entries],
        [entry.truth.wording if entry.truth.task else NOISE for entry in entries],
        [{v.strip() for name, v in entry.truth.slots.items() if name in CASE_FIELDS} for entry in entries],
    )


def _acme() -> Log:
    spec = importlib.util.find_spec("slmify")
    if spec is None or spec.origin is None:
        raise SystemExit("install slmify 0.2.0")
    path = Path(spec.origin).parent / "demo" / "acme_traces.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().split("\n") if line]
    exchanges = [
        Exchange(
            id=f"r{i}",
            at=datetime.fromtimestamp(row["created"], UTC),
            request=row["request"],
            response=row["response"],
            model=row["request"]["model"],
        )
        for i, row in enumerate(rows)
    ]
    return Log(exchanges, [row["metadata"]["ground_truth"] for row in rows], [set() for _ in rows])


# Methods: each returns the group of every request, -1 for none


def by_us(log: Log) -> tuple[list[int], dict[str, Any]]:
    prompts = {e.id: read_prompt(e.route, e.request) for e in log.exchanges}
    miner = Miner[str]()
    for e in log.exchanges:
        if (prompt := prompts[e.id]) is not None:
            miner.add(e.id, e.at, prompt)
    found = miner.templates()
    group = {member: i for i, members in enumerate(found.values()) for member in members}
    templates = list(found)
    exact = asked = 0
    for exchange, case in zip(log.exchanges, log.cases, strict=True):
        prompt = prompts[exchange.id]
        if case and prompt and exchange.id in group:
            values = templates[group[exchange.id]].values(prompt) or ()
            exact += case <= {value.strip() for value in values}
        asked += bool(case)
    return [group.get(e.id, -1) for e in log.exchanges], {"exact_cases": exact, "cases": asked}


def by_our_tasks(log: Log) -> tuple[list[int], dict[str, Any]]:
    """Return the tasks that discovery makes of the templates: wordings with the same answers are one task."""
    miner = Miner[Case]()
    for case in read_cases(log.exchanges).cases:
        miner.add(case, case.at, case.prompt)
    tasks = find_tasks(miner.templates())
    group = {case.id: i for i, task in enumerate(tasks) for case, _, _ in task.cases}
    return [group.get(e.id, -1) for e in log.exchanges], {"kinds": [task.kind for task in tasks]}


def _text(exchange: Exchange) -> str:
    prompt = read_prompt(exchange.route, exchange.request)
    return "\n".join(turn.text for turn in prompt.turns) if prompt else ""


def by_drain(log: Log) -> tuple[list[int], dict[str, Any]]:
    from drain3 import TemplateMiner
    from drain3.template_miner_config import TemplateMinerConfig

    miner = TemplateMiner(config=TemplateMinerConfig())
    return [miner.add_log_message(" ".join(_text(e).split()))["cluster_id"] for e in log.exchanges], {}


def _signatures(log: Log) -> list[str]:
    """Return slmify's signature of each request, as its pipeline makes it."""
    from slmify.grouping.drain_templates import TemplateIndex
    from slmify.grouping.schema_shape import output_schema_hash
    from slmify.grouping.steps import step_key
    from slmify.model import output_text, prompt_text

    index = TemplateIndex()
    records = _records(log)
    return [
        f"{step_key(r)}|{index.add(prompt_text(r)).template_id}|{output_schema_hash(output_text(r)) or '-'}"
        for r in records
    ]


def _records(log: Log) -> list[Any]:
    from slmify.adapters.openai_jsonl import OpenAIJsonlAdapter

    adapter = OpenAIJsonlAdapter()
    return [adapter._parse_row(row, str(i), "log") for i, row in enumerate(map(_as_chat, log.exchanges))]


def _as_chat(exchange: Exchange) -> dict[str, Any]:
    """Return a request and response as chat completions, which is what slmify reads."""
    if exchange.route.endswith("/chat/completions"):
        return {"request": exchange.request, "response": exchange.response, "created": exchange.at.timestamp()}
    prompt, answer = (
        read_prompt(exchange.route, exchange.request),
        read_answer(exchange.route, exchange.response),
    )
    assert prompt is not None
    assert answer is not None
    messages = [{"role": turn.role, "content": turn.text} for turn in prompt.turns]
    choices = [{"message": {"role": "assistant", "content": answer.text}, "finish_reason": "stop"}]
    request = {"model": exchange.model, "messages": messages}
    return {"request": request, "response": {"choices": choices}, "created": exchange.at.timestamp()}


def by_slmify(log: Log) -> tuple[list[int], dict[str, Any]]:
    from slmify.cluster.runner import cluster_records
    from slmify.embed.base import get_embedder, joint_space
    from slmify.model import output_text, prompt_text

    records = _records(log)
    embedder = get_embedder("hash")
    prompts = embedder.embed([prompt_text(r)[:4000] or " " for r in records])
    answers = embedder.embed([output_text(r)[:4000] or " " for r in records])
    return cluster_records(joint_space(prompts, answers), _signatures(log)).labels.tolist(), {}


METHODS: dict[str, Callable[[Log], tuple[list[int], dict[str, Any]]]] = {
    "ours": by_us,
    "ours_tasks": by_our_tasks,
    "drain": by_drain,
    "slmify": by_slmify,
}


# Scores


def measure(method: str, collection: str, seed: int) -> dict[str, Any]:
    log = read_log(collection, seed)
    begun = time.process_time()
    groups, more = METHODS[method](log)
    seconds = time.process_time() - begun
    sizes = Counter(groups)
    groups = [group if sizes[group] >= MIN_REQUESTS else -1 for group in groups]
    truth = list(log.wordings)
    by_task = [wording.partition("/")[0] for wording in truth]
    if method == "ours_tasks":
        truth = by_task
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for group, wording in zip(groups, truth, strict=True):
        counts[group][wording] += 1
    counts.pop(-1, None)
    totals = Counter(truth)
    wordings = [wording for wording in totals if wording != NOISE]
    right = [
        group
        for group, found in counts.items()
        if (best := found.most_common(1)[0])[0] != NOISE
        and best[1] >= FOUND * totals[best[0]]
        and best[1] >= FOUND * found.total()
    ]
    in_task = np.array([wording != NOISE for wording in truth])
    return {
        "method": method,
        "collection": collection,
        "seed": seed,
        "n": len(truth),
        "wordings": len(wordings),
        "groups": len(counts),
        "right": len(right),
        "noise": int((~in_task).sum()),
        "noise_in_groups": sum(found[NOISE] for found in counts.values()),
        "v_all": homogeneity_completeness_v_measure(truth, groups)[2],
        "v_by_task": homogeneity_completeness_v_measure(by_task, groups)[2],
        "seconds": seconds,
        **more,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("collection", choices=COLLECTIONS)
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    print(json.dumps(measure(given.method, given.collection, given.seed)))


if __name__ == "__main__":
    main()
