"""Three typed questions about every message: from captured decisions to small models that answer them.

    python -m benchmarks.serving.decisions FOLDER [--requests 6000]         # half an hour on two cores

An application asks the proxy by OpenAI's SDK, `client.decisions.create`; an upstream answers Banking77's messages from a
recording (`decisions_upstream`). What was captured is discovered, each question is learnt from the upstream's answers
alone, at a promise of 5 % or else of 10 %, and taken over; then the messages of the test split follow, which nobody has
learnt from. TypeSafe's client asks the same questions where `--typesafe PYTHON` names an environment that has it. What
was learnt in FOLDER before is not learnt again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from benchmarks.compatibility.decisions import MACHINE, process
from benchmarks.paths import RESULTS
from benchmarks.serving.decisions_upstream import MODEL, questions, right, rows
from smallfirst.stats.intervals import clopper_pearson

RESULT = RESULTS / "decisions.md"
UPSTREAM_PORT, PROXY_PORT = 8541, 8542
AT_ONCE = 16
ALONE = 200
"""Requests that are timed, one after another."""
LADDER = ("words", "encoder")
"""Candidates that are measured: those that need no fine-tuning."""
MAX_ERRORS = (0.05, 0.1)
"""Promises that are tried, in this order."""
NAMES = ("intent", "card", "urgency")
TYPESAFE = """
import json, sys
from typesafe_sdk import Choice, Noul, Score, TypeSafeClient
questions, texts = json.load(open(sys.argv[2]))
asked = {}
for one in questions:
    if one["type"] == "choice":
        criteria = {c["value"]: c["description"] for c in one["choices"]}
        asked[one["name"]] = Choice(instructions=one["instructions"], criteria=criteria)
    elif one["type"] == "predicate":
        asked[one["name"]] = Noul(instructions=one["instructions"])
    else:
        asked[one["name"]] = Score(instructions=one["instructions"], criteria=[l["label"] for l in one["levels"]])
client = TypeSafeClient(base_url=sys.argv[1], api_key="k")
found = []
for text in texts:
    given = client.system_one(state=text, questions=asked, model="judge")
    urgency = max(given.scores["urgency"].probabilities, key=given.scores["urgency"].probabilities.get)
    by = [one["probabilities"] for one in json.loads(given.raw_http_response.content)["smallfirst"]["answers"]]
    found.append([given.choices["intent"].choice, given.nouls["card"].noul, urgency, by])
print(json.dumps(found))
"""


class Answered(NamedTuple):
    """The answer to one question about a message."""

    question: str
    label: str
    probability: float
    small: bool
    said: str
    """What the upstream says."""
    truth: str


class Asked(NamedTuple):
    """One request."""

    answers: list[Answered]
    ms: float


async def ask(messages: list[dict[str, Any]], at_once: int = AT_ONCE) -> list[Asked]:
    """Ask about all messages by the SDK, `at_once` at a time, in their order."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key="sk-test", base_url=f"http://127.0.0.1:{PROXY_PORT}/v1")
    slots, asked = asyncio.Semaphore(at_once), questions()

    async def one(row: dict[str, Any]) -> Asked:
        async with slots:
            began = time.perf_counter()
            given = await client.decisions.create(model="judge", input=row["text"], questions=asked)  # type: ignore[arg-type]
            ms = 1000 * (time.perf_counter() - began)
            notes = (given.model_extra or {}).get("smallfirst", {}).get("answers", [{}] * len(NAMES))
            said, truth = right(row["answer_label"]), right(row["label"])
            return Asked(
                [
                    Answered(name, *likeliest(answer), "task" in note, said[name], truth[name])
                    for name, answer, note in zip(NAMES, given.answers, notes, strict=True)
                ],
                ms,
            )

    try:
        return list(await asyncio.gather(*map(one, messages)))
    finally:
        await client.close()


def likeliest(answer: Any) -> tuple[str, float]:
    """Return the likeliest label of an answer with its probability."""
    if answer.type == "predicate":
        true = answer.probability
        return ("true", true) if true >= 0.5 else ("false", 1 - true)
    best = max(answer.probabilities, key=lambda one: one.probability)
    return str(best.value if answer.type == "choice" else best.label), best.probability


def verb(folder: Path, *arguments: str) -> str:
    """Run a verb as a user does; return what it says."""
    line = [sys.executable, "-m", "smallfirst.cli.main", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def learn(folder: Path) -> dict[str, str]:
    """Discover what was captured and learn each task; return what each promises."""
    began = time.perf_counter()
    verb(folder, "discover")
    print(f"discover: {time.perf_counter() - began:.0f} s", flush=True)
    promises = {}
    for place in sorted((folder / "discovered").glob("*/task.yaml")):
        values = yaml.safe_load(place.read_text(encoding="utf-8"))
        for max_error in MAX_ERRORS:
            routing = {**values["routing"], "guarantee": {"max_error": max_error}}
            place.write_text(yaml.safe_dump({**values, "ladder": list(LADDER), "routing": routing}), encoding="utf-8")
            began = time.perf_counter()
            try:
                said = json.loads(verb(folder, "learn", str(place.parent), "--json"))
            except SystemExit as refused:
                print(refused, flush=True)
                promises[place.parent.name] = "no promise can be shown"
                continue
            print(f"learn {place.parent.name}: {time.perf_counter() - began:.0f} s, {said}", flush=True)
            verb(folder, "take-over", said["task"], "--share", "1")
            promises[said["task"]] = said["promise"]
            break
    return promises


def calibration_error(answers: list[Answered]) -> float:
    """Return the mean gap between probability and agreement over ten groups of equally many answers."""
    ordered = sorted(answers, key=lambda one: one.probability)
    groups = [group for group in np.array_split(np.arange(len(ordered)), 10) if len(group)]
    gaps = []
    for group in groups:
        some = [ordered[i] for i in group]
        agreed = statistics.fmean(one.label == one.said for one in some)
        gaps.append(len(some) * abs(agreed - statistics.fmean(one.probability for one in some)))
    return sum(gaps) / len(ordered)


def share(n: int, of: int) -> str:
    """Return a share with its 95 % interval."""
    found = clopper_pearson(n, of)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def p50(asked: list[Asked], small: bool) -> str:
    """Return the median time of the requests whose answers all are, or are not all, small."""
    chosen = [one.ms for one in asked if all(answer.small for answer in one.answers) is small]
    return f"{statistics.median(chosen):.0f} ms (n = {len(chosen)})" if chosen else "none"


def typesafe(python: str, folder: Path, messages: list[dict[str, Any]], ours: list[Asked]) -> str:
    """Return how TypeSafe's client fares with the same questions about the same messages."""
    (folder / "typesafe.json").write_text(json.dumps([questions(), [row["text"] for row in messages]]))
    line = [python, "-c", TYPESAFE, f"http://127.0.0.1:{PROXY_PORT}", str(folder / "typesafe.json")]
    found = json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)
    same = n = small = 0
    for (intent, card, urgency, by), one in zip(found, ours, strict=True):
        labels = [intent, "true" if card >= 0.5 else "false", ("low", "medium", "high")[urgency]]
        same += sum(label == answer.label for label, answer in zip(labels, one.answers, strict=True))
        small += sum(worth.startswith("calibrated") for worth in by)
        n += len(labels)
    return (
        f"TypeSafe's client, `typesafe-sdk`, unmodified, asked the same three questions about the first {len(found)} of these "
        f"messages by `system_one`: {small} of {n} answers came from the same small models, {same} labels are the same."
    )


def page(asked: list[Asked], alone: list[Asked], promises: dict[str, str], n_learnt: int, last: str) -> str:
    """Return the page."""
    lines = [
        "# Typed questions answered small",
        "",
        f"`python -m benchmarks.serving.decisions FOLDER --requests {n_learnt}`, 2026-11-27, {MACHINE}, shared with other work.",
        "",
        "OpenAI's SDK, unmodified, asks three questions about each message of Banking77: the intent (a choice of 77), whether",
        "it is about a card (a predicate), how soon the bank must react (a score of three levels). The upstream answers from a",
        f"hosted model's recorded answers. {n_learnt:,} requests were captured, discovered as three tasks, learnt from the upstream's",
        f"answers alone (candidates {', '.join(LADDER)}) and taken over with share 1; then came {len(asked):,} messages",
        "of the test split, drawn by chance. A promise of 5 % is tried first, then one of 10 %: the requests did not show 5 % for each.",
        "",
        "| question | answered small | differ from the upstream | right by people's labels: small answers | upstream on the same | calibration error |",
        "|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        every = [one for request in asked for one in request.answers if one.question == name]
        small = [one for one in every if one.small]
        if not small:
            lines.append(f"| {name} | {share(0, len(every))} | | | | |")
            continue
        differ, truth = sum(one.label != one.said for one in small), sum(one.label == one.truth for one in small)
        theirs = sum(one.said == one.truth for one in small)
        lines.append(
            f"| {name} | {share(len(small), len(every))} | {share(differ, len(small))} | {share(truth, len(small))} | "
            f"{share(theirs, len(small))} | {calibration_error(small):.3f} |"
        )
    whole = [request for request in asked if all(one.small for one in request.answers)]
    mixed = [request for request in asked if 0 < sum(one.small for one in request.answers) < len(NAMES)]
    every = [one for request in asked for one in request.answers]
    lines += [
        "",
        "The promises: " + "; ".join(f"`{task}`: {promise}" for task, promise in promises.items()) + ".",
        "",
        "`calibration error`: over ten groups of equally many small answers, the mean gap between the probability of the answer",
        "and the share that agrees with the upstream, on whose answers the probabilities are calibrated.",
        "",
        f"- Of {len(every):,} questions {share(sum(one.small for one in every), len(every))} were answered small.",
        f"- {share(len(whole), len(asked))} of the requests needed no upstream at all, {share(len(mixed), len(asked))} were answered in part "
        "small and for the rest by one call.",
        f"- One request at a time, the first {len(alone)} again, by the client's clock on the loaded machine: p50 {p50(alone, True)} where all is "
        f"answered small, {p50(alone, False)} for the others, whose upstream answers at once (the recorded model took 594 ms).",
        f"- {last}" if last else "",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Go the whole way and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--test", type=int, default=3080)
    parser.add_argument("--typesafe", default="")
    chosen = parser.parse_args()
    folder: Path = chosen.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gateway.yaml").write_text(
        f"upstreams: {{judge: {{base_url: 'http://127.0.0.1:{UPSTREAM_PORT}/v1'}}}}\ncapture: {{share: 1.0}}\n"
        "decisions: {upstream: judge, shape: openai}\n"
        f"prices: {{tokens: {{{MODEL}: {{input_usd_per_mtok: 0.1, output_usd_per_mtok: 0}}, "
        "judge: {input_usd_per_mtok: 0.1, output_usd_per_mtok: 0}}}\n"
    )
    traffic = rows("train")
    order = np.random.default_rng(0).permutation(len(traffic))[: chosen.requests]
    upstream = ("benchmarks.serving.decisions_upstream", str(UPSTREAM_PORT))
    proxy = ("smallfirst.cli.main", "proxy", str(folder), "--port", str(PROXY_PORT))
    health = f"http://127.0.0.1:{PROXY_PORT}/health"
    with process(*upstream, url=f"http://127.0.0.1:{UPSTREAM_PORT}/"):
        known = folder / "learnt.json"
        if not known.exists():
            with process(*proxy, url=health):
                asyncio.run(ask([traffic[i] for i in order]))
            known.write_text(json.dumps(learn(folder)))
        promises = json.loads(known.read_text())
        with process(*proxy, url=health):
            every = rows("test")
            test = [every[i] for i in np.random.default_rng(1).permutation(len(every))[: chosen.test]]
            asked = asyncio.run(ask(test))
            alone = asyncio.run(ask(test[:ALONE], at_once=1))
            last = typesafe(chosen.typesafe, folder, test[:100], asked[:100]) if chosen.typesafe else ""
    (folder / "answers.json").write_text(json.dumps(asked))
    RESULT.write_text(page(asked, alone, promises, len(order), last), encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
