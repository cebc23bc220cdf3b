"""Templates found in a mixed log, beside `drain3` and `slmify`'s miner on the same requests.

    python -m benchmarks.traffic.templates measure METHOD COLLECTION SEED RESULTS.jsonl
    python -m benchmarks.traffic.templates page RESULTS.jsonl

METHOD is ours, ours_tasks, drain or slmify; COLLECTION is mixed, noise or acme (the log that slmify brings along, with its labels).
`measure` adds a line to RESULTS.jsonl, `page` writes benchmarks/results/discovery.md from it. The peers, installed
apart: `drain3` 0.9.11, `slmify` 0.2.0.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import homogeneity_completeness_v_measure

from benchmarks.datasets import RESULTS
from benchmarks.traffic.mixed_log import mixed_log, noise_log
from smallfirst.base.stats.intervals import wilson
from smallfirst.traffic.discovery.mine import MIN_REQUESTS, Miner
from smallfirst.traffic.discovery.tasks import Case, find_tasks, read_cases
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.wire import read_answer, read_prompt

FOUND = 0.9
"""A wording is found if a group holds this share of its requests, and this share of the group is of the wording."""
NOISE = "noise"
CASE_FIELDS = {f"{name}{ending}" for name in ("text", "question", "context") for ending in ("", "_json")}
TITLES = {
    "ours": "`mine` (ours)",
    "drain": "`drain3`, its defaults",
    "slmify": "`slmify`'s clusters (signatures and both texts' vectors)",
}
COLLECTIONS = {
    "mixed": "24,000 requests in wordings that the miner was not developed on",
    "acme": "4,500 requests, the log that slmify brings along (7 labelled groups, one of them conversations; written by its authors)",
    "noise": "7,500 requests of no task",
}


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


HEAD = """# What is discovered in traffic

`python -m benchmarks.traffic.templates measure …` for each line, then `… page`, {today}, one core. The log is made by
`benchmarks/traffic/mixed_log.py` from ten public sets: 24,000 requests, 15 % of them noise, 41 wordings of 11 tasks.

A group is right if it holds 90 % of a wording's requests and 90 % of it is that wording; groups of fewer than {least} requests
count as none. V-measure: over all requests, noise taken for one class and requests in no group for one group. Medians over
seeds; recall is per wording of one log. Case exact: requests of tasks whose slots hold the case as it was put in. Processor
seconds. `slmify` embeds with its own fallback (`hash`), since the weights of its default are not on PyPI."""


PEERS = """
**Tasks: wordings with the same answers put together by `discover`**

A task is right if its group holds 90 % of its requests and 90 % of the group is of it. V-measure against tasks, noise one class; the peers' groups are measured against the same truth.

| log | | seeds | groups | right | recall of tasks | V |
|---|---|---|---|---|---|---|"""
FOUND_HEADS = """| | seeds | groups | right | recall of wordings | V | noise in groups | case exact | seconds |
|---|---|---|---|---|---|---|---|---|"""
Measured = Sequence[dict[str, Any]]


def page(results: Path) -> None:
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    by = {at: [r for r in rows if (r["collection"], r["method"]) == at] for at in product(COLLECTIONS, METHODS)}
    lines = [HEAD.format(today=date.today(), least=MIN_REQUESTS)]
    for collection, title in COLLECTIONS.items():
        found = [_wordings_line(title, of) for method, title in TITLES.items() if (of := by[collection, method])]
        lines += ["", f"**{title}**", "", FOUND_HEADS, *found] if found else []
    lines.append(PEERS)
    for collection in COLLECTIONS:
        for method in ("ours_tasks", "slmify"):
            of = [row for row in by[collection, method] if "v_by_task" in row]
            if of and collection != NOISE:
                ours = method == "ours_tasks"
                recall = [f"{round(np.mean([row['right'] for row in of]))}", _recall(of)] if ours else ["–", "–"]
                cells = [collection, "`discover` (ours)" if ours else TITLES[method], f"{len(of)}"]
                cells += [_median(of, "groups", 0), *recall, _median(of, "v_by_task")]
                lines.append(f"| {' | '.join(cells)} |")
    (RESULTS / "discovery.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _median(of: Measured, name: str, digits: int = 3) -> str:
    values = [row[name] for row in of if row.get(name) is not None]
    return f"{np.median(values):.{digits}f}" if values else "–"


def _recall(of: Measured) -> str:
    return str(wilson(round(np.mean([row["right"] for row in of])), of[0]["wordings"]))


def _wordings_line(title: str, of: Measured) -> str:
    total = {name: sum(row.get(name, 0) for row in of) for name in ("wordings", "exact_cases", "cases", "noise")}
    exact = f"{total['exact_cases'] / total['cases']:.4f}" if total["cases"] else "–"
    inside = sum(row["noise_in_groups"] for row in of)
    noise = f"{inside:,} of {total['noise']:,}" if total["noise"] else "–"
    cells = [title, f"{len(of)}", _median(of, "groups", 0), _median(of, "right", 0)]
    cells += [_recall(of) if total["wordings"] else "–", _median(of, "v_all"), noise, exact, _median(of, "seconds", 0)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("measure")
    one.add_argument("method", choices=METHODS)
    one.add_argument("collection", choices=COLLECTIONS)
    one.add_argument("seed", type=int)
    one.add_argument("results", type=Path)
    verbs.add_parser("page").add_argument("results", type=Path)
    given = parser.parse_args()
    if given.verb == "page":
        page(given.results)
        return
    row = measure(given.method, given.collection, given.seed)
    with given.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
