"""Templates found in a mixed log, beside `drain3` and `slmify`'s miner on the same requests.

    python -m benchmarks.traffic.templates measure METHOD COLLECTION SEED RESULTS.jsonl
    python -m benchmarks.traffic.templates page RESULTS.jsonl

METHOD is ours, ours_tasks, drain, drain_masked, slmify_steps or slmify; COLLECTION is development, report, unseen, noise or acme (the log
that slmify brings along, with its labels). `measure` adds a line to RESULTS.jsonl, `page` writes the section
"Templates" of benchmarks/results/discovery.md from it. The peers, installed apart: `drain3` 0.9.11, `slmify` 0.2.0.
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
from benchmarks.traffic.results_page import write_section
from smallfirst.stats.intervals import wilson
from smallfirst.traffic.discovery.cases import Case, read_cases
from smallfirst.traffic.discovery.tasks import find_tasks
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.messages import read_answer, read_prompt
from smallfirst.traffic.templates.mine import MIN_REQUESTS, Miner

FOUND = 0.9
"""A wording is found if a group holds this share of its requests, and this share of the group is of the wording."""
NOISE = "noise"
CASE_FIELDS = {f"{name}{ending}" for name in ("text", "question", "context") for ending in ("", "_json")}
TITLES = {
    "ours_first": "`mine` (ours), the first run on these wordings",
    "ours": "`mine` (ours)",
    "drain": "`drain3`, its defaults",
    "drain_masked": "`slmify`'s miner (`drain3`, values masked, whole prompt)",
    "slmify_steps": "`slmify`'s signatures (system prompt, tools, template, answer's shape)",
    "slmify": "`slmify`'s clusters (signatures and both texts' vectors)",
}
COLLECTIONS = {
    "report": "24,000 requests, wordings other than those that the miner was developed on",
    "development": "24,000 requests, the wordings that the miner was developed on",
    "unseen": "24,000 requests, wordings written after that, in the layouts of public frameworks",
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
    entries = noise_log(seed) if collection == NOISE else mixed_log(collection, seed)
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


def by_masked_drain(log: Log) -> tuple[list[int], dict[str, Any]]:
    from slmify.grouping.drain_templates import TemplateIndex

    index = TemplateIndex()
    return [int(index.add(_text(e)).template_id[1:]) for e in log.exchanges], {}


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


def by_slmify_steps(log: Log) -> tuple[list[int], dict[str, Any]]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(signature, len(numbers)) for signature in _signatures(log)], {}


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
    "drain_masked": by_masked_drain,
    "slmify_steps": by_slmify_steps,
    "slmify": by_slmify,
}


# Scores


def measure(method: str, collection: str, seed: int) -> dict[str, Any]:
    log = read_log(collection, seed)
    begun = time.process_time()
    groups, more = METHODS[method](log)
    seconds = time.process_time() - begun
    sizes, all_groups = Counter(groups), list(groups)
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
    kept = [i for i in range(len(truth)) if in_task[i]]
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
        "v_tasks": homogeneity_completeness_v_measure([truth[i] for i in kept], [groups[i] for i in kept])[2]
        if kept
        else None,
        "v_any_size": homogeneity_completeness_v_measure(truth, all_groups)[2],
        "v_by_task": homogeneity_completeness_v_measure(by_task, groups)[2],
        "seconds": seconds,
        **more,
    }


# The page

_REMARKS = (
    "How the miner was developed: on `development`, seed 0. Its first run on `report` found 37 of 41 wordings and cut "
    "94.7 % of the cases exactly; two faults (a version that begins just before a look was mixed with the old one; words "
    "between a number and a date were lost) were then removed, so `report` is no longer untouched. `unseen` was written "
    "after that: its first run found 41 of 41 and cut 84.7 % exactly (`->` and typographic quotes were taken for the "
    "case's own, and a question that ends with a blank hid the blank line after it); the first run on slmify's log found "
    "4 of 7 (few cases asked often, and an instruction whose cases all begin alike, were refused). The lines "
    "without *first run* are after these faults were removed; seeds 2 and 3 draw other requests for the same wordings.",
    "",
    "All logs but slmify's were written by the authors of the miner from public sets: the cases are real, the prompts are not. "
    "On slmify's log the first turn of each conversation is a template of its own here and later turns are none; its "
    "labels take all turns for one group.",
    "",
    "Size: all three collections twice, one after another (144,000 requests), read from files as one stream: 25 processor "
    "seconds in the miner, 193 MB of memory at the peak, 124 templates for 123 wordings.",
    "",
    "Drain groups by the number of words first, so a case of another length is another group. `slmify` has Drain, the "
    "system prompt, the tools and the shape of the answer in its signatures and clusters these further by vectors: few "
    "wordings stay whole.",
)


def page(results: Path) -> None:
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    lines = [
        "A group is right if it holds 90 % of a wording's requests and 90 % of it is that wording; groups of fewer than "
        f"{MIN_REQUESTS} requests count as none. V-measure: over all requests, noise taken for one class and requests in "
        "no group for one group, over the requests of tasks alone, and over all requests with groups of any size. Groups, right "
        "ones and V are medians over seeds; recall is per wording of one log. Case exact: requests of tasks whose slots hold "
        "the case as it was put in, to the character (white space at its ends aside). Processor seconds on one shared core, medians "
        "over seeds. `slmify` embeds with its own fallback (`hash`), since the weights of its default are not on PyPI.",
    ]
    for collection, title in COLLECTIONS.items():
        chosen = [row for row in rows if row["collection"] == collection]
        if chosen:
            lines += ["", f"**{title}**", "", *_table(chosen)]
    lines += ["", "**Tasks: wordings with the same answers put together by `discover`**", ""]
    lines += [
        "A task is right if its group holds 90 % of its requests and 90 % of the group is of it. V-measure against tasks, "
        "noise one class; the peers' groups are measured against the same truth.",
        "",
        "| log | | seeds | groups | right | recall of tasks | V |",
        "|---|---|---|---|---|---|---|",
    ]
    for collection in COLLECTIONS:
        for method in ("ours_tasks", "slmify_steps", "slmify"):
            of = [r for r in rows if r["method"] == method and r["collection"] == collection and "v_by_task" in r]
            if not of or collection == NOISE:
                continue
            right, wordings = round(np.mean([row["right"] for row in of])), of[0]["wordings"]
            ours = method == "ours_tasks"
            v = np.median([row["v_by_task"] for row in of])
            lines.append(
                f"| {collection} | {'`discover` (ours)' if ours else TITLES[method]} | {len(of)} | "
                f"{np.median([row['groups'] for row in of]):.0f} | {right if ours else '–'} | "
                f"{wilson(right, wordings) if ours else '–'} | {v:.3f} |"
            )
    command = "`python -m benchmarks.traffic.templates measure …` for each line, then `… page`"
    write_section("Templates", command, "\n".join([*lines, "", *_REMARKS]))


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| | seeds | groups | right | recall of wordings | V all | V tasks | V any size | noise in groups | case exact | "
        "seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, title in TITLES.items():
        of = [row for row in rows if row["method"] == method]
        if not of:
            continue

        def total(name: str, of: Sequence[dict[str, Any]] = of) -> int:
            return sum(row.get(name, 0) for row in of)

        def median(name: str, of: Sequence[dict[str, Any]] = of) -> str:
            values = [row[name] for row in of if row.get(name) is not None]
            return f"{np.median(values):.3f}" if values else "–"

        recall = str(wilson(round(total("right") / len(of)), of[0]["wordings"])) if total("wordings") else "–"
        exact = f"{total('exact_cases') / total('cases'):.4f}" if total("cases") else "–"
        noise = f"{total('noise_in_groups'):,} of {total('noise'):,}" if total("noise") else "–"
        lines.append(
            f"| {title} | {len(of)} | {float(median('groups')):.0f} | {float(median('right')):.0f} | {recall} | "
            f"{median('v_all')} | {median('v_tasks')} | {median('v_any_size')} | {noise} | {exact} | "
            f"{float(median('seconds')):.0f} |"
        )
    return lines


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
