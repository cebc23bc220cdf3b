"""Prompts of applications for the tasks of `cases`: 41 wordings that the miner was not developed on.

The instruction stands in the system message, in all one user message, before or after the case, in JSON; examples stand in turns or
inside the message. `<<name>>` is a slot. Instructions are in wordings.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

DATE_FORMS = ("%Y-%m-%d", "%d %B %Y", "%A, %B %d, %Y")
INPUT = {"pubmedqa": ("question", "context"), "xquad": ("question", "context")}
"""Fields of a case where there are several; else it is `text`."""
Turns = list[tuple[str, str]]
Shots = Sequence[tuple[str, str]]
Frame = Callable[[str, tuple[str, ...], Shots], Turns]


class Use(NamedTuple):
    """One wording in use: an instruction in a frame, an answer format, and when."""

    task: str
    frame: str
    version: int
    """Of the instruction: 1 or 2."""
    answer: str
    """label, frame, json, compact, indent, fence, tool or text."""
    since: float = 0.0
    """Share of the month that has passed when it comes into use."""
    until: float = 1.0
    weight: float = 1.0


INSTRUCTIONS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
"""Both versions of each task's."""
NOUNS = {"hosted_invoices": "Invoice", "e2e_restaurants": "Description", "snips": "Command", "medquad": "Question"}


def _labelled(names: tuple[str, ...], noun: str = "Message", gap: str = "\n") -> str:
    return gap.join(f"{noun if name == 'text' else name.capitalize()}: <<{name}>>" for name in names)


def _raw(names: tuple[str, ...]) -> str:
    return "\n\n".join(f"<<{name}>>" for name in reversed(names))


def _with(names: tuple[str, ...], shots: Shots, before: str, between: str) -> str:
    return "".join(f"{before}{case}{between}{answer}\n\n" for case, answer in shots) + f"{before}{_raw(names)}{between}"


def _turns(shots: Shots) -> Turns:
    return [turn for case, answer in shots for turn in (("user", case), ("assistant", answer))]


FRAMES: dict[str, Frame] = {
    "persona": lambda i, f, s: [
        ("system", f"You are a diligent assistant of <<company>>. {i}\nNever explain your answer."),
        ("user", _raw(f)),
    ],
    "developer_quoted": lambda i, f, s: [("developer", i), ("user", f'Here is the text:\n\n"""\n{_raw(f)}\n"""')],
    "markdown": lambda i, f, s: [
        ("user", f"# Task\n{i}\n\n# Input\n{_labelled(f, 'Text', chr(10) * 2)}\n\n# Output\n")
    ],
    "user_json": lambda i, f, s: [
        (
            "user",
            i
            + '\n\nInput: {"id": "<<uuid>>", "channel": "<<channel>>", '
            + ", ".join(f'"{name}": "<<{name}_json>>"' for name in f)
            + "}",
        )
    ],
    "numbered": lambda i, f, s: [("user", f"[req <<uuid>>] {i} Text: {_raw(f)}")],
    "case_first": lambda i, f, s: [("user", f"From customer <<ticket>> on <<date>>:\n{_raw(f)}\n\n{i}")],
    "instructions": lambda i, f, s: [("instructions", i), ("input", _raw(f))],
    "shots_turns_b": lambda i, f, s: [
        ("system", i),
        *_turns([(f"Text: {case}\nResult:", answer) for case, answer in s[:2]]),
        ("user", f"Text: {_raw(f)}\nResult:"),
    ],
    "shots_inline_b": lambda i, f, s: [
        ("system", "Follow the examples."),
        ("user", f"{i}\n\n" + _with(f, s[:3], "Q: ", "\nA: ").rstrip(" ")),
    ],
    "shots_retrieved_b": lambda i, f, s: [
        (
            "user",
            f"{i}\n\nSimilar cases:\n"
            + "".join(f"- <<shot_{n}>> => <<shot_answer_{n}>>\n" for n in "abc")
            + f"\nNow the case: {_raw(f)}\n=>",
        )
    ],
}

USES = (
    Use("hosted_banking77", "persona", 1, "label", until=0.4, weight=3),
    Use("hosted_banking77", "persona", 2, "label", since=0.4, weight=3),
    Use("hosted_banking77", "user_json", 1, "label"),
    Use("hosted_banking77", "shots_turns_b", 2, "label"),
    Use("hosted_invoices", "developer_quoted", 1, "json", until=0.35, weight=2),
    Use("hosted_invoices", "developer_quoted", 2, "json", since=0.35, weight=2),
    Use("hosted_invoices", "case_first", 1, "json"),
    Use("hosted_invoices", "shots_inline_b", 2, "json"),
    Use("banking_card", "numbered", 1, "label", until=0.5),
    Use("banking_card", "numbered", 2, "label", since=0.5),
    Use("banking_card", "instructions", 1, "frame"),
    Use("banking_card", "shots_inline_b", 1, "label"),
    Use("clinc_domain", "markdown", 1, "json", until=0.6),
    Use("clinc_domain", "markdown", 2, "json", since=0.6),
    Use("clinc_domain", "developer_quoted", 1, "tool"),
    Use("clinc_domain", "shots_retrieved_b", 2, "label"),
    Use("clinc_intent", "instructions", 1, "label", until=0.5),
    Use("clinc_intent", "instructions", 2, "label", since=0.5),
    Use("clinc_intent", "case_first", 1, "label"),
    Use("clinc_intent", "shots_turns_b", 2, "frame"),
    Use("snips", "persona", 1, "compact", until=0.65),
    Use("snips", "persona", 2, "compact", since=0.65),
    Use("snips", "user_json", 1, "json"),
    Use("snips", "shots_inline_b", 2, "indent"),
    Use("restaurant8k", "markdown", 1, "fence", until=0.5),
    Use("restaurant8k", "markdown", 2, "fence", since=0.5),
    Use("restaurant8k", "instructions", 1, "json"),
    Use("restaurant8k", "shots_turns_b", 1, "tool"),
    Use("e2e_restaurants", "case_first", 1, "json", until=0.3),
    Use("e2e_restaurants", "case_first", 2, "json", since=0.3),
    Use("e2e_restaurants", "persona", 2, "indent"),
    Use("e2e_restaurants", "shots_retrieved_b", 1, "json"),
    Use("pubmedqa", "markdown", 1, "label", weight=2),
    Use("pubmedqa", "developer_quoted", 2, "frame"),
    Use("pubmedqa", "numbered", 1, "json"),
    Use("xquad", "markdown", 1, "text"),
    Use("xquad", "user_json", 2, "text"),
    Use("xquad", "instructions", 1, "json"),
    Use("medquad", "persona", 1, "text", until=0.5),
    Use("medquad", "persona", 2, "text", since=0.5),
    Use("medquad", "numbered", 1, "text"),
)


def instruction(use: Use, labels: Sequence[str]) -> str:
    lines = "\n".join(f"- {label}" for label in labels)
    return INSTRUCTIONS[use.task][use.version - 1].format(lines=lines, pipes=" | ".join(labels))


def turns(use: Use, labels: Sequence[str], shots: Shots) -> Turns:
    """Return the messages of a wording, as role and text with slots; shots are examples as (case, answer)."""
    found = FRAMES[use.frame](instruction(use, labels), INPUT.get(use.task, ("text",)), shots)
    noun = NOUNS.get(use.task)
    return [(role, text.replace("Message: <<text>>", f"{noun}: <<text>>") if noun else text) for role, text in found]
