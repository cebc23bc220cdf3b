"""A task of the traffic as its files keep it: how it is asked and answered, and how much of it is taken over.

A template is constant text around slots in each message of a prompt. `discover` writes `source.json` beside the task's
`task.yaml`; `learn` and `take-over` read it. `takeovers.json` is written by the command line and followed by the proxy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.base.files import locked
from smallfirst.base.paths import home, state_folder
from smallfirst.base.records import Record, fingerprint
from smallfirst.data.conversations import NO_CALL, write_call
from smallfirst.traffic.assistant import Assistant
from smallfirst.traffic.wire import ModelAnswer, Prompt, ToolCall

# The format of its answers


class JsonWriting(Record):
    """How values become JSON text. Paths of fields are written as `items[].price`; that of the whole value is empty."""

    keys: dict[str, tuple[str, ...]] = {}
    """Order of the keys of the objects at a path; other keys follow in their own order."""
    decimals: dict[str, int] = {}
    """Number of decimals at a path whose numbers all have as many, as prices do; else the shortest that is exact."""
    indent: str = ""
    """What one level is indented by; empty: all on one line."""
    item_separator: str = ", "
    """Between items on one line."""
    key_separator: str = ": "
    """Between a key and its value."""
    ascii_only: bool = False
    """True if other characters are written as escapes."""

    def write(self, value: Any, path: str = "") -> str:
        """Return the value at a path as JSON text."""
        return self._write(value, path, "\n")

    def _write(self, value: Any, path: str, line_end: str) -> str:
        if isinstance(value, dict):
            keys, inner = self._ordered(value, path), line_end + self.indent
            held = {key: self._write(value[key], child_path(path, key), inner) for key in keys}
            items = [f"{self._scalar(key, '')}{self.key_separator}{text}" for key, text in held.items()]
            return self._joined("{", items, "}", line_end)
        if isinstance(value, list):
            items = [self._write(item, f"{path}[]", line_end + self.indent) for item in value]
            return self._joined("[", items, "]", line_end)
        return self._scalar(value, path)

    def _joined(self, opening: str, items: Sequence[str], closing: str, line_end: str) -> str:
        if not items or not self.indent:
            return opening + self.item_separator.join(items) + closing
        inner = line_end + self.indent
        return opening + inner + f",{inner}".join(items) + line_end + closing

    def _scalar(self, value: Any, path: str) -> str:
        if path in self.decimals and isinstance(value, int | float) and not isinstance(value, bool):
            return f"{value:.{self.decimals[path]}f}"
        return json.dumps(value, ensure_ascii=self.ascii_only)

    def _ordered(self, value: dict[str, Any], path: str) -> list[str]:
        first = [key for key in self.keys.get(path, ()) if key in value]
        return first + [key for key in value if key not in first]


def child_path(path: str, key: str) -> str:
    """Return the path of a key in the object at a path, as in `JsonWriting`."""
    return f"{path}.{key}" if path else key


class AnswerFormat(Record):
    """How a value stands in an answer."""

    kind: Literal["label", "json", "text", "call"]
    """A label, a JSON object or list, text as it is, or a call of one of several functions."""
    prefix: str = ""
    """Constant text before the value: a sentence frame, or the opening of a code fence."""
    suffix: str = ""
    """Constant text after it."""
    tool: str = ""
    """Name of the one function whose arguments hold the value; empty: it stands in the text."""
    calls: bool = False
    """True: the label is the name of the function that is called, as where an agent hands over, with `prefix` as its
    arguments."""
    writing: JsonWriting = JsonWriting()
    """How JSON is written: order of keys, spaces, decimals. Arguments of calls are at the path of their function."""

    def parse(self, answer: ModelAnswer) -> Any | None:
        """Return the value in an answer: a str, or a dict or list for JSON; None if the answer has another format.

        Of calls it is the one call in canonical form; NO_CALL for text or several.
        """
        if self.kind == "call":
            return _parse_call(answer)
        if self.calls:
            called = [call.name for call in answer.tool_calls if call.arguments == self.prefix]
            alone = len(answer.tool_calls) == 1 and not answer.text.strip()
            return called[0] if called and alone and answer.finish_reason in ("stop", "tool_calls") else None
        text = self._written(answer)
        if text is None or not text.startswith(self.prefix) or not text.endswith(self.suffix):
            return None
        inner = text[len(self.prefix) : len(text) - len(self.suffix)]
        if len(text) < len(self.prefix) + len(self.suffix):
            return None
        if self.kind != "json":
            return inner.strip() or None
        try:
            value = json.loads(inner)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict | list) else None

    def render(self, value: Any) -> ModelAnswer:
        """Return the answer that holds `value`, as the large model would have written it.

        `value` is what `parse` returns; JSON may also be given as text. Raise ValueError for text that is no JSON.
        """
        if self.kind == "call":
            call = json.loads(value)
            written = self.writing.write(call["arguments"], call["name"])
            return ModelAnswer("", (ToolCall(call["name"], written),), "tool_calls")
        if self.calls:
            return ModelAnswer("", (ToolCall(str(value), self.prefix),), "tool_calls")
        if self.kind == "json":
            inner = self.writing.write(json.loads(value) if isinstance(value, str) else value)
        else:
            inner = str(value)
        text = f"{self.prefix}{inner}{self.suffix}"
        return ModelAnswer("", (ToolCall(self.tool, text),), "tool_calls") if self.tool else ModelAnswer(text)

    def reproduces(self, answer: ModelAnswer) -> bool:
        """Return True if the value in the answer is written again byte for byte."""
        value = self.parse(answer)
        if value is None or (self.kind == "call" and value == NO_CALL):
            return False
        again = self.render(value)
        return again.text == answer.text and again.tool_calls == answer.tool_calls

    def _written(self, answer: ModelAnswer) -> str | None:
        """Return the text that should hold the value; None for a refusal, a cut-off answer and other tool calls."""
        if answer.finish_reason not in ("stop", "tool_calls"):
            return None
        if not self.tool:
            return None if answer.tool_calls else answer.text
        if len(answer.tool_calls) != 1 or answer.tool_calls[0].name != self.tool:
            return None
        return answer.tool_calls[0].arguments


def _parse_call(answer: ModelAnswer) -> str | None:
    if answer.finish_reason not in ("stop", "tool_calls") or not (answer.tool_calls or answer.text):
        return None
    if len(answer.tool_calls) != 1 or answer.text.strip():
        return NO_CALL
    try:
        arguments = json.loads(answer.tool_calls[0].arguments or "{}")
    except (ValueError, RecursionError):
        return None
    return write_call(answer.tool_calls[0].name, arguments) if isinstance(arguments, dict) else None


class FormatCheck(Record):
    """How faithfully a format gives recorded answers back."""

    n_answers: int
    """Recorded answers that were finished: neither cut off nor refused."""
    n_read: int
    """Of these, the ones that have the format."""
    n_exact: int
    """Of these, the ones that come back byte for byte."""
    recorded: str = ""
    """The first answer that has the format and does not come back; empty if all do."""
    rendered: str = ""
    """What comes back instead."""

    @property
    def is_exact(self) -> bool:
        """True if every answer that has the format comes back byte for byte."""
        return self.n_exact == self.n_read


# Its prompts


def values_between(pieces: Sequence[str], text: str) -> tuple[str, ...] | None:
    """Return what stands between the pieces, of each the shortest that fits; None if the text does not follow them."""
    if len(pieces) == 1:
        return () if text == pieces[0] else None
    at, end = len(pieces[0]), len(text) - len(pieces[-1])
    if at > end or not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return None
    values = []
    for piece in pieces[1:-1]:
        found = text.find(piece, at, end)
        if found < 0:
            return None
        values.append(text[at:found])
        at = found + len(piece)
    return (*values, text[at:end])


class TurnPattern(Record):
    """One message of a template: constant pieces, with a slot between each two of them."""

    role: str
    """system, user or assistant; an assistant's message is a solved example."""
    pieces: tuple[str, ...]
    """At least one; the message is pieces[0], slot, pieces[1], slot, …, pieces[-1]. The outer ones may be empty."""

    @property
    def n_slots(self) -> int:
        return len(self.pieces) - 1


class Template(Record):
    """What all prompts of one kind share."""

    turns: tuple[TurnPattern, ...]
    """The messages, oldest first."""
    tools: str = ""
    """As in `Prompt.tools`."""
    response_format: str = ""
    """As in `Prompt.response_format`."""

    @property
    def id(self) -> str:
        """16 hex digits: equal templates, equal ids; another wording is another template."""
        return fingerprint(self.model_dump(mode="json"))

    @property
    def n_slots(self) -> int:
        return sum(turn.n_slots for turn in self.turns)

    def values(self, prompt: Prompt) -> tuple[str, ...] | None:
        """Return what stands in the slots of all messages, in order; None if the prompt does not follow it."""
        if prompt.has_media or prompt.tools != self.tools or prompt.response_format != self.response_format:
            return None
        if len(prompt.turns) != len(self.turns):
            return None
        values: tuple[str, ...] = ()
        for pattern, turn in zip(self.turns, prompt.turns, strict=True):
            found = values_between(pattern.pieces, turn.text) if pattern.role == turn.role else None
            if found is None:
                return None
            values += found
        return values


# Where it was found

SOURCE_FILE = "source.json"


class TemplateSlot(Record):
    """A slot of a template."""

    name: str
    """Name of the field, such as text, ticket or date."""
    use: Literal["text", "ignored"] = "text"
    """ignored: it does not belong to the case, as a date or a request's number does not."""


class TaskTemplate(Record):
    """One wording of the task's prompt."""

    template: Template
    slots: tuple[TemplateSlot, ...]
    """One for each slot of the template, in order."""
    answer_format: AnswerFormat | None = None
    """Format of its answers, where it is not the task's."""

    def text(self, prompt: Prompt) -> str | None:
        """Return the case that a prompt asks about; None if it follows another template.

        Several slots are written one to a line, as `name: value`.
        """
        values = self.template.values(prompt)
        if values is None:
            return None
        used = [(slot.name, value) for slot, value in zip(self.slots, values, strict=True) if slot.use == "text"]
        if len(used) == 1:
            return used[0][1]
        return "\n".join(f"{name}: {value}" for name, value in used)


class Teacher(Record):
    """The model whose answers the task was learnt from."""

    model: str = ""
    """As the responses name it; in gateway.yaml its key."""
    licence: str = ""
    """Its licence or terms, as the settings give them; empty where they say nothing."""
    training_allowed: bool = True
    """False: its terms forbid training on its answers, which are then used for measuring alone."""


class TaskSource(Record):
    """A recurring task in recorded traffic."""

    name: str
    templates: tuple[TaskTemplate, ...]
    """The wordings in use, newest last; none of an assistant."""
    answer_format: AnswerFormat
    format_check: FormatCheck | None = None
    """How faithfully the format gives the recorded answers back; one that is not exact blocks the take-over."""
    models: tuple[str, ...] = ()
    """Models that the application asks for with these prompts."""
    teacher: Teacher
    assistant: Assistant | None = None
    """Whose calls these are; its requests follow no template."""
    foretold_share: tuple[float, float, float] | None = None
    """Share of its requests that can move: estimate, and the ends of its 95 % interval."""

    @classmethod
    def of(cls, folder: Path) -> TaskSource | None:
        """Return the source of the task in a folder; None if it was not found in traffic."""
        path = folder / SOURCE_FILE
        return cls.load(path) if path.exists() else None


# How much of it is taken over

TAKEOVERS_FILE = "takeovers.json"
LEARNT = "learnt"
"""Folder of the learnt task below that of the drafted one."""
SECOND_LOOK_AFTER = 1000
"""Texts in shadow after which the certificate is looked for once more, unless the drafted task.yaml sets another."""
State = Literal["shadow", "live", "stepped back"]
"""shadow: the large model answers, the small one beside it; stepped back: the same, since something has changed."""
Cause = Literal["", "person", "prompt", "model", "guarantee"]


class TenantStepBack(Record):
    """The one tenant whose requests alone the large model answers again."""

    tenant: str
    """Name of its key."""
    cause: Cause
    why: str
    at: AwareDatetime


class TakeOver(Record):
    """A learnt task, as it is served."""

    task: str
    folder: Path
    """Folder of its `source.json`; what was learnt is below it."""
    state: State = "shadow"
    share: float = Field(default=0.0, ge=0, le=1)
    """Share of its requests for which the small model may answer, in [0, 1]; kept while it has stepped back."""
    version: int = 0
    """Version of its model in the registry; another one is loaded at once."""
    changed_at: AwareDatetime = datetime.fromtimestamp(0, UTC)
    promise: str = ""
    """What its certificate promises, in words; empty while nothing is promised."""
    certificate: str = ""
    """Fingerprint of the certificate that the second look put in force; another one is loaded at once."""
    second_look: str = ""
    """What the second look found, in one sentence without its end; empty before it."""
    cause: Cause = ""
    why: str = ""
    """What led to its state, in one sentence."""
    tenant_back: TenantStepBack | None = None
    """For whom a live task has stepped back, until a person takes it over again; a second tenant ends it for all."""

    @property
    def live_share(self) -> float:
        """Share of requests for which the small model may answer now."""
        return self.share if self.state == "live" else 0.0

    def check_format(self) -> None:
        """Raise ConfigError, with an example, unless every recorded answer comes back byte for byte."""
        source = TaskSource.of(self.folder)
        check = source.format_check if source else None
        if check is not None and not check.is_exact:
            raise ConfigError(
                f"{self.task}: {check.n_read - check.n_exact} of {check.n_read} recorded answers do not come back byte "
                f"for byte\n  the large model: {check.recorded}\n  written again:   {check.rendered}",
                hint="--accept-format, if the application reads both alike",
            )

    def moved(self, state: State, *, cause: Cause, why: str, share: float | None = None) -> TakeOver:
        """Return it in another state, as of now; what a person does ends a tenant's step back."""
        changes = {"state": state, "cause": cause, "why": why, "changed_at": datetime.now(UTC)}
        changes |= {} if share is None else {"share": share}
        return self.model_copy(update=changes | ({"tenant_back": None} if cause == "person" else {}))

    @property
    def serves(self) -> tuple[Path, int, str]:
        """What is loaded for it."""
        return self.folder, self.version, self.certificate

    @property
    def about_second_look(self) -> str:
        """What the second look found, and the command that follows where it waits for one; empty before it."""
        waits = self.second_look and self.certificate and self.state == "shadow"
        return f"{self.second_look}; ready: {self.command}" if waits else self.second_look

    @property
    def command(self) -> str:
        """The command that lets the small model answer."""
        return f"smallfirst take-over {self.task} --share 0.1"

    def stepped_back(self, tenant: str, cause: Cause, why: str, *, one_tenant: bool) -> TakeOver:
        """Return it after evidence of a tenant: back for this one alone, or for all if it is the only or second one."""
        other = self.tenant_back
        if self.state != "live" or (other and other.tenant == tenant):
            return self
        if not (one_tenant or other):
            alone = TenantStepBack(tenant=tenant, cause=cause, why=why, at=datetime.now(UTC))
            return self.model_copy(update={"tenant_back": alone})
        before = f"; tenant {other.tenant} had stepped back: {other.why}" if other else ""
        return self.moved("stepped back", cause=cause, why=why + before)


Change = Callable[[TakeOver | None], TakeOver]
"""From what the file says of a task, if it names it, to what it shall say."""


class _Content(Record):
    tasks: tuple[TakeOver, ...] = ()


class TakeOvers:
    """The file of one state folder. Any process may change it; each change is one task's."""

    def __init__(self, path: Path | None = None) -> None:
        """Use the file at `path`, else that of the state folder; it may be missing."""
        self.path = path or state_folder() / TAKEOVERS_FILE

    def read(self) -> Mapping[str, TakeOver]:
        found = _Content.load(self.path).tasks if self.path.exists() else ()
        return {one.task: one for one in found}

    def get(self, task: str) -> TakeOver:
        """Return a task. Raise ConfigError if it was not learnt."""
        known = self.read()
        if task not in known:
            raise ConfigError(
                f"{task} was not learnt{did_you_mean(task, known)}; learnt so far: {', '.join(known) or 'nothing'}",
                hint=f"smallfirst learn discovered/{task}",
            )
        return known[task]

    def put(self, changed: TakeOver) -> TakeOver:
        """Write one task, in place of what the file said of it; return it."""
        return self.update(changed.task, lambda _: changed)

    def update(self, task: str, change: Change) -> TakeOver:
        """Replace what the file says of a task by what `change` makes of it, with nobody in between; return it."""
        with self._only_writer():
            known = dict(self.read())
            changed = change(known.get(task))
            if changed != known.pop(task, None):
                _Content(tasks=(*known.values(), changed)).save(self.path)
        return changed

    def remove(self, task: str) -> None:
        """Leave a task out of the file from now on: a running proxy passes its requests on."""
        with self._only_writer():
            _Content(tasks=tuple(one for name, one in self.read().items() if name != task)).save(self.path)

    def _only_writer(self) -> AbstractContextManager[None]:
        if self.path == state_folder() / TAKEOVERS_FILE:
            home()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return locked(self.path.with_suffix(".lock"))

    @property
    def stamp(self) -> int:
        """A number that changes with the file."""
        return self.path.stat().st_mtime_ns if self.path.exists() else 0
