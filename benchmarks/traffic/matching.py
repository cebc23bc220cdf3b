"""How long the proxy looks for the task that a request resembles, with 10, 100 and 1,000 live tasks.

    python -m benchmarks.traffic.matching

Instructions of 60 words are drawn by Zipf's law, so tasks share common words; requests of 200 and of 3,000 words follow no wording.
Half of them hold most words of one task's instructions. Processor time of the look-up alone, without redaction.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from time import thread_time

import numpy as np

from smallfirst.traffic.gateway.tasks import TaskMatcher
from smallfirst.traffic.task_source import (
    AnswerFormat,
    TaskSource,
    TaskTemplate,
    Teacher,
    Template,
    TemplateSlot,
    TurnPattern,
)
from smallfirst.traffic.wire import Prompt, Turn

WORDS = [f"word{n}" for n in range(20_000)]
WEIGHTS = [1 / (n + 3) for n in range(20_000)]
N_REQUESTS = 400


def milliseconds(n_tasks: int, n_words: int) -> tuple[float, float, int]:
    """Return the median and the 99th percentile of a look-up in ms, and how many requests resembled a task."""
    draw = random.Random(n_tasks)
    said = [draw.choices(WORDS, WEIGHTS, k=60) for _ in range(n_tasks)]
    matcher = TaskMatcher({f"task-{n}": _source(f"task-{n}", " ".join(words)) for n, words in enumerate(said)})
    took, near = [], 0
    for n in range(N_REQUESTS):
        words = draw.choices(WORDS, WEIGHTS, k=n_words)
        if n % 2:
            words[:50] = draw.choice(said)[:50]
        asked = Prompt("gpt", (Turn("user", " ".join(words)),))
        began = thread_time()
        near += matcher.near(asked) is not None
        took.append(1000 * (thread_time() - began))
    return float(np.median(took)), float(np.quantile(took, 0.99)), near


def _source(name: str, instructions: str) -> TaskSource:
    turns = (TurnPattern(role="system", pieces=(instructions,)), TurnPattern(role="user", pieces=("", "")))
    wording = TaskTemplate(template=Template(turns=turns), slots=(TemplateSlot(name="text"),))
    form = AnswerFormat(kind="label")
    return TaskSource(
        name=name, templates=(wording,), answer_format=form, models=("gpt",), teacher=Teacher(model="gpt")
    )


def rows() -> Iterator[str]:
    yield "| tasks | words of a request | median ms | p99 ms | requests that resemble one |"
    for n_tasks in (10, 100, 1_000):
        for n_words in (200, 3_000):
            median, high, near = milliseconds(n_tasks, n_words)
            yield f"| {n_tasks:,} | {n_words:,} | {median:.3f} | {high:.3f} | {near} of {N_REQUESTS} |"


if __name__ == "__main__":
    for line in rows():
        print(line, flush=True)
