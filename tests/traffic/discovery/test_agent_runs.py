"""Requests are put together to agents' runs, and tasks are told as steps of them."""

import random

import pytest
from fixtures.html_page import Page
from fixtures.traffic import QUEUES, SAYINGS, SORT, cases_of, exchange, sorted_tickets, ticket

from smallfirst.interfaces.cli.drop_in import _in_words
from smallfirst.traffic.discovery.agent_runs import runs_of
from smallfirst.traffic.discovery.discover import Discovery, discover, render_report
from smallfirst.traffic.exchange import Exchange

GATE = "May the assistant answer this customer by itself? Say yes or no."
REPLY = "Write a friendly answer of two sentences to the customer."
N = 150


def agent_log() -> list[Exchange]:
    """Return runs that sort a ticket, ask whether to go on, which is told by the queue, and if so reply."""
    rng = random.Random(0)
    log: list[Exchange] = []
    for run in range(N):
        queue = rng.choice(tuple(QUEUES))
        message = f"Message: {ticket(rng, queue)}"
        goes_on = queue != "account"
        reply = " ".join(rng.choice(SAYINGS).format(rng.choice("abcdefgh") * 5) for _ in range(4))
        steps = [("sort", SORT, message, queue), ("", GATE, f"Queue: {queue}\n{message}", "yes" if goes_on else "no")]
        for step, *asked in [*steps, *([("answer", REPLY, message, reply)] if goes_on else [])]:
            log.append(exchange(len(log), *asked, trace=f"t{run}", step=step))
    return log


@pytest.fixture(scope="module")
def found() -> Discovery:
    return discover(agent_log(), max_error=0.1)


def test_steps_are_told_by_what_they_answer_and_where_they_stand(found: Discovery) -> None:
    steps = {task.name: task.step for task in found.tasks}
    gate = next(name for name in steps if name not in ("sort", "answer"))  # named by its instruction
    n_going_on = steps["answer"].n_runs
    told = {name: (step.kind, step.place, step.position, step.of) for name, step in steps.items()}
    assert told == {"sort": ("route", "first", 1, 3), gate: ("stop", "middle", 2, 3), "answer": ("open", "last", 3, 3)}
    assert [steps[name].follows for name in ("sort", gate, "answer")] == [{"start": 1.0}, {"sort": 1.0}, {gate: 1.0}]
    assert steps[gate].ends == ("no",)
    assert steps["answer"].share == pytest.approx(n_going_on / N)
    assert steps["answer"].usd_per_run == pytest.approx(0.001 * n_going_on / N)
    assert (found.runs.n, found.runs.n_requests) == (N, 2 * N + n_going_on)
    assert found.runs.paths == {f"sort → {gate} → answer": n_going_on, f"sort → {gate}": N - n_going_on}


def test_what_the_step_before_tells_and_what_a_promise_needs(found: Discovery) -> None:
    steps = {task.step.kind: task.step for task in found.tasks}
    assert steps["stop"].from_before.value == 1
    assert steps["stop"].usual.value == pytest.approx(steps["open"].share)
    assert steps["route"].from_before is None
    # ln 0.05 / ln 0.9 = 28.4: 29 rows certify, four fifths of the 36 of 177 that validate.
    assert (steps["route"].cases_needed, steps["route"].runs_needed) == (177, 177)
    assert steps["open"].cases_needed is None


def test_runs_are_in_both_reports(found: Discovery) -> None:
    words, page = " ".join(_in_words(found)), Page(render_report(found)).words
    assert f"agents: {N} runs of 2.6 requests" in words
    assert "stop, ends after no" in page
    assert "last, 3 of 3, after may-customer" in page
    assert "177 cases, 177 runs" in words
    assert "177 cases, 177 runs" in page


def test_requests_by_themselves_are_no_runs() -> None:
    alone = [one.model_copy(update={"trace": one.id}) for one in sorted_tickets(60)]
    assert discover(alone).runs is None
    assert discover(agent_log(), most=200).runs is None  # of a part of the log, runs would be cut


def test_without_names_a_run_goes_on_with_what_tools_returned() -> None:
    asked = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Where is my parcel?"}]
    called = [*asked, {"role": "assistant", "content": "track"}, {"role": "tool", "content": "in Bonn"}]
    went_on = [*asked, {"role": "assistant", "content": "In Bonn."}, {"role": "user", "content": "When does it come?"}]
    log = [exchange(i, "", "", "x", request={"messages": one}) for i, one in enumerate((asked, called, asked, went_on))]
    assert [[case.id for case in run] for run in runs_of(cases_of(log))] == [["x0", "x1"], ["x2"], ["x3"]]
