"""Assistants in recorded traffic: requests with the same functions and instructions, whose conversations go on.

Each is one task, of kind call. What can move is foretold by two callers without an encoder, each fitted on one half of
the conversations: its calls in the other go through the search that a run certifies with.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.data.conversations import NO_CALL, conversations_of, from_text, to_messages
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certify import LEVEL
from smallfirst.routing.certificate.threshold_search import search_groups
from smallfirst.tasks.call import Call, function_of
from smallfirst.traffic.assistant import Assistant
from smallfirst.traffic.discovery import draft
from smallfirst.traffic.discovery.answer_formats import FoundFormat, find_call_format
from smallfirst.traffic.discovery.outlook import Outlook
from smallfirst.traffic.discovery.tasks import Case, as_name, free_name
from smallfirst.traffic.task_source import TaskSource
from smallfirst.traffic.wire import Json

MIN_TURNS, MIN_CALLS, MIN_CONVERSATIONS = 50, 20, 10
GOES_ON = 0.2
"""Least share of requests that go on from an earlier answer: without them a call is the answer to one text."""
SHARES = (0.45, 0.8, 1.0)
"""Share of the conversations at which the rows of each file end: few teach, since the promise takes many."""
LOOKED_AT = 4000
"""Turns that a forecast looks at; each caller learns from half of their conversations, a run from 45 % of all."""
ERRORS_LEFT = (0.6, 0.8, 1.0)
"""Shares of these callers' wrong calls that a run's, which has an encoder, makes: equally likely."""
MORE = 5
"""Times as many conversations as there are, with which it is told whether more would help."""
_ENDS, _RESAMPLES, _OF_MORE, _SEED = (0.05, 0.5, 0.95), 200, 20, 0
_MOST_BESIDE = 100
_LASTING = re.compile(
    r"approve|archive|assign|book|buy|cancel|charge|close|confirm|create|debit|delete|deny|deploy|disable|donate|email|"
    r"erase|execute|grant|invite|issue|make|message|modify|notify|order|pay|post|publish|purchase|refund|reject|remove|"
    r"rent|reserve|reset|revoke|schedule|sell|send|share|sign|submit|subscribe|terminate|transfer|unsubscribe|update|"
    r"withdraw|write"
)
"""Words of names, and first words of descriptions, of functions that do what lasts."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class CallFigures(Record):
    """An assistant's calls in a log."""

    n_conversations: int
    n_calls: int
    """Turns that are one call."""
    share: Estimate
    """Of its turns that are."""
    per_conversation: float
    moves: Estimate | None = None
    """Share of the calls that move if something is promised, with a 90 % interval; None if nothing is foretold."""
    chance: float = 0.0
    """Chance in [0, 1] that something is."""
    chance_of_more: float = 0.0
    """The same with MORE times the conversations."""
    lasting: tuple[str, ...] = ()
    """Functions that seem to do what cannot be undone: a person decides whether they are called small."""

    @property
    def in_words(self) -> str:
        share = f"{self.share.value:.0%} [{self.share.low:.0%}, {self.share.high:.0%}]"
        said = (
            f"{self.n_calls:,} of {self.share.n:,} turns are calls ({share}), {self.per_conversation:.1f} in each of "
        )
        said += f"{self.n_conversations:,} conversations"
        never = f"; seem not to be undone: {', '.join(self.lasting)} (see functions: in task.yaml)"
        return said + (never if self.lasting else "")


class AssistantTask:
    """The requests of one assistant."""

    def __init__(self, assistant: Assistant, cases: Sequence[Case]) -> None:
        """Take cases that are understood, oldest first."""
        self.assistant, self.cases, self.name = assistant, cases, ""
        self.texts = ["\n".join(case.lines) for case in cases]
        self.conversations = conversations_of(self.texts)
        self.found: FoundFormat = find_call_format([case.answer for case in cases])
        known = {*assistant.names, NO_CALL, ""}
        read = [self.found.format.parse(case.answer) for case in cases]
        self.answers: list[str | None] = [answer if function_of(answer) in known else None for answer in read]
        """Canonical; None for what was cut off or refused, and for calls of functions that there are not."""

    @cached_property
    def calls(self) -> Counter[str]:
        """Calls by function."""
        return Counter(function_of(answer) for answer in self.answers if answer not in (None, NO_CALL))

    @property
    def recurs(self) -> bool:
        """True if it is one: enough turns, calls and conversations that go on."""
        n = len(self.cases)
        going_on = sum(any(line[:7] in ('{"assis', '{"call"') for line in case.lines) for case in self.cases)
        enough = n >= MIN_TURNS and self.calls.total() >= MIN_CALLS and going_on >= GOES_ON * n
        return enough and len(set(self.conversations)) >= MIN_CONVERSATIONS

    @cached_property
    def figures(self) -> CallFigures:
        n = len(set(self.conversations))
        return CallFigures(
            n_conversations=n,
            n_calls=self.calls.total(),
            share=wilson(self.calls.total(), len(self.cases)),
            per_conversation=self.calls.total() / n,
            lasting=tuple(tool["name"] for tool in self.assistant.tools if _lasts(tool)),
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Models that are asked for, most frequent first."""
        return tuple(model for model, _ in Counter(case.prompt.model for case in self.cases).most_common())

    @property
    def answered_by(self) -> str:
        return Counter(case.answered_by for case in self.cases).most_common(1)[0][0]

    @cached_property
    def repeats(self) -> Estimate:
        """Share of repeated texts with the answer of the time before."""
        last: dict[str, str | None] = {}
        same = list[bool]()
        for text, answer in zip(self.texts, self.answers, strict=True):
            same += [last[text] == answer] if text in last else []
            last[text] = answer
        return wilson(sum(same), len(same))


def find_assistants(cases: Sequence[Case]) -> list[AssistantTask]:
    """Return the assistants in cases, the most frequent first."""
    by_id: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.assistant is not None:
            by_id[case.assistant.id].append(case)
    seen = [own[0].assistant for own in by_id.values() if len(own) >= MIN_CALLS and own[0].assistant]
    found, taken = list[AssistantTask](), set[str]()
    for own in sorted(by_id.values(), key=len, reverse=True):
        if len(own) < MIN_TURNS or (assistant := own[0].assistant) is None:
            continue
        beside = tuple(other.id for other in seen if assistant.changed(other) is not None)[:_MOST_BESIDE]
        task = AssistantTask(assistant.model_copy(update={"beside": beside}), own)
        if task.recurs:
            steps = {case.step for case in own}
            step = steps.pop() if len(steps) == 1 else ""
            words = _WORD.findall(task.calls.most_common(1)[0][0])
            task.name = free_name(as_name(step or "-".join(words)), taken)
            taken.add(task.name)
            found.append(task)
    return found


def _lasts(tool: Mapping[str, Any]) -> bool:
    words = _WORD.findall(tool["name"]) + _WORD.findall(tool["description"])[:1]
    return any(_LASTING.fullmatch(word.casefold().removesuffix("s")) for word in words)


# What can move


def foretell_calls(task: AssistantTask, max_error: float) -> tuple[Outlook, CallFigures]:
    """Return the outlook by turns, and the figures with the chance of a promise and the share of the calls it moves."""
    names, n_of = sorted(set(task.conversations), key=draft.digest), Counter(task.conversations)
    certifying = draft.CERTIFYING * (SHARES[1] - SHARES[0]) + SHARES[2] - SHARES[1]
    n_certifying = max(1, round(certifying * len(names)))
    n = int(np.searchsorted(np.cumsum([n_of[name] for name in names]), LOOKED_AT, side="right"))
    place = {name: i for i, name in enumerate(names[:n])}
    rows = [row for row in zip(task.texts, task.answers, task.conversations, strict=True) if row[2] in place]
    unit, due = np.array([place[name] for *_, name in rows], dtype=int), [a not in (None, NO_CALL) for _, a, _ in rows]
    if min(np.bincount(unit % 2, due, minlength=2)) < MIN_CALLS:
        return Outlook(n_certifying=n_certifying, why="its calls are too few to foretell anything"), task.figures
    right, sure, most = _read_by_halves(Call(name=task.name, tools=task.assistant.tools), rows, unit)
    made = [np.flatnonzero((unit == at) & (sure > 0)) for at in range(n)]
    order, rng = np.array([len(text) for text, *_ in rows]), np.random.default_rng(_SEED)

    def kept(n_conversations: int) -> float:
        """Return the share of the calls that so many conversations keep, drawn from what these could have been."""
        drawn = rng.choice(rng.integers(0, n, n), n_conversations)
        at = np.concatenate([made[i] for i in drawn]).astype(int)
        mended = rng.random(len(at)) >= rng.choice(ERRORS_LEFT)
        nothing = np.zeros((1, len(at)))
        data = CalibrationSet(
            confidence=sure[at][None],
            right=(right[at] | mended)[None],
            cost_usd=nothing,
            asked=nothing[0],
            large_right=nothing[0] > 0,
            unit=np.repeat(np.arange(n_conversations), [len(made[i]) for i in drawn]).astype(object),
            place=order[at],
            most_of_group=most,
        )
        found = search_groups(data, max_error, LEVEL).threshold
        return float(((sure > 0) & (sure >= found)).sum() / sum(due))

    shares, more = [kept(n_certifying) for _ in range(_RESAMPLES)], [kept(MORE * n_certifying) for _ in range(_OF_MORE)]
    some, turns = [one for one in shares if one], [one * sum(due) / len(rows) for one in shares]
    agreement = wilson(int(right[sure > 0].sum()), int((sure > 0).sum()))
    outlook = Outlook(agreement=agreement, moves=_interval(turns, len(rows)), n_certifying=n_certifying)
    moves = _interval(some or [one for one in more if one] or [0.0], sum(due))
    chances = {"chance": len(some) / _RESAMPLES, "chance_of_more": sum(one > 0 for one in more) / _OF_MORE}
    return outlook, task.figures.model_copy(update={"moves": moves, **chances})


def _read_by_halves(
    kind: Call, rows: Sequence[tuple[str, str | None, str]], unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return by row whether the call is right and how sure it is, 0 for none, and the most calls of a conversation.

    `unit` numbers the conversations: those with even numbers are read by what was learnt from the odd ones, and these
    by the others.
    """
    from smallfirst.models.calls.caller import MAX_CALLS, FunctionCaller
    from smallfirst.models.manifest import Manifest

    right, sure, most = np.zeros(len(rows), dtype=bool), np.zeros(len(rows)), MAX_CALLS
    manifest = Manifest(kind="caller", task=kind, base="")
    for half in (0, 1):
        others = [(text, a, name) for (text, a, name), at in zip(rows, unit, strict=True) if at % 2 != half and a]
        caller, own = FunctionCaller.fit(others, manifest), unit % 2 == half
        most = min(most, caller.most)
        for i, read in zip(*own.nonzero(), caller.read([rows[i][0] for i in own.nonzero()[0]]), strict=True):
            answer = rows[i][1]
            right[i] = answer is not None and kind.score([answer], read.answer) >= 1
            sure[i] = math.exp(sum(read.logs)) if read.answer != NO_CALL and read.n_before < caller.most else 0.0
    return right, sure, most


def _interval(shares: Sequence[float], n: int) -> Estimate:
    low, middle, high = (round(min(1.0, float(one)), 4) for one in np.quantile(shares, _ENDS))
    return Estimate(value=middle, low=low, high=high, n=n)


# The draft

TOOLS = "tools.json"
_ONE_LOG = {"exchangeable": True, "columns": {"group": "conversation"}}
"""Settings of rows that a hash of their conversations parts: test rows certify too."""


def source_of(task: AssistantTask, outlook: Outlook, teacher_of: draft.TeacherOf) -> TaskSource:
    """Return the record of where the assistant was found."""
    share = outlook.moves
    return TaskSource(
        name=task.name,
        templates=(),
        answer_format=task.found.format,
        format_check=task.found.check,
        models=task.models,
        teacher=teacher_of(task.answered_by, *task.models),
        foretold_share=(share.value, share.low, share.high) if share else None,
        assistant=task.assistant,
    )


def write_draft(task: AssistantTask, source: TaskSource, folder: Path, max_error: float) -> bool:
    """Write the folder of an assistant; return as `draft.write_folder`."""
    tools = [{"type": "function", "function": dict(tool)} for tool in task.assistant.tools]
    names = sorted(set(task.conversations), key=draft.digest)
    ends = [round(share * len(names)) for share in SHARES]
    files = (draft.ROWS, draft.VALIDATION, draft.TEST)
    part_of = {name: next(f for f, end in zip(files, ends, strict=True) if i < end) for i, name in enumerate(names)}
    parts: dict[str, list[Json]] = {name: [] for name in files}
    for case, text, answer, name in zip(task.cases, task.texts, task.answers, task.conversations, strict=True):
        if answer is not None:
            messages = [*to_messages(from_text(text)), _message(case, answer)]
            asked: Json = {"messages": messages, "tools": tools, "conversation": name}
            parts[part_of[name]].append(asked | draft.facts_of(case))
    values = {
        "name": task.name,
        "kind": "call",
        "about": draft.shortened(" ".join(_system_texts(task))),
        "tools": TOOLS,
        "ladder": ["caller"],
        "data": {**dict(zip(("train", "validation", "test"), files, strict=True)), **_ONE_LOG},
        "routing": {"labels": "large", "guarantee": {"max_error": max_error}},
        "requests_per_month": draft.a_month(len(task.cases), task.cases[0].at, task.cases[-1].at),
    }
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    if lasting := task.figures.lasting:
        body += (
            "\n# These functions seem to do what cannot be undone. Take the mark away from the next line to have them\n"
            f"# called by the large model alone; strike out those that may be called small.\n"
            f"# functions: {{{', '.join(f'{name}: never' for name in lasting)}}}\n"
        )
    body += draft.whose_answers(task.answered_by, task.models[0])
    return draft.write_folder(folder, source, parts, body, {TOOLS: tools})


def _message(case: Case, answer: str) -> Json:
    """Return an answer as the last message of a row; a call beside text is left out, since it is none to be made."""
    calls = case.answer.tool_calls
    if answer == NO_CALL and len(calls) < 2:
        return {"role": "assistant", "content": case.answer.text}
    called = [
        {"id": f"answer_{n}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for n, call in enumerate(calls, 1)
    ]
    return {"role": "assistant", "content": case.answer.text or None, "tool_calls": called}


def _system_texts(task: AssistantTask) -> list[str]:
    return [turn.value for turn in from_text(task.texts[-1]) if turn.kind == "system"]


def prompt_of(task: AssistantTask) -> str:
    """Return instructions and functions as they are shown."""
    tools = (f"{tool['name']}({', '.join(tool['parameters'].get('properties', {}))})" for tool in task.assistant.tools)
    return "\n\n".join([*(f"system: {text}" for text in _system_texts(task)), *tools])


def examples_of(task: AssistantTask, n: int, n_characters: int) -> tuple[tuple[str, str], ...]:
    """Return the last turns before a call of each of the most frequent functions, with the call."""
    found: dict[str, tuple[str, str]] = {}
    for text, answer in zip(task.texts, task.answers, strict=True):
        if answer not in (None, NO_CALL):
            found.setdefault(function_of(answer), (text[-n_characters:], json.dumps(json.loads(answer or ""))))
    return tuple(found[name] for name, _ in task.calls.most_common(n))
