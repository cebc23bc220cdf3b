"""The eight row formats, recognized by their keys, and the rules of their values; a row fits one or is refused.

What a value may be written as without meaning anything else (spaces around labels, numbers for labels, empty rows) is
read as what it means, counted, and noted with its first places; nothing is changed in silence.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import lru_cache
from sys import intern
from typing import Any, NamedTuple

from smallfirst.base.errors import did_you_mean
from smallfirst.base.records import Record
from smallfirst.data.check import Finding, make_finding
from smallfirst.data.conversations import (
    NO_CALL,
    ConversationTurn,
    calls_of,
    from_text,
    read_functions,
    read_turns,
    to_messages,
    to_text,
    write_call,
)
from smallfirst.data.dataset import Example, Message, RowFormat, share_field_names


class Columns(Record):
    """Names of the columns of a file."""

    text: str = "text"
    """The text to classify, or the text to continue."""
    label: str = "label"
    """The label of a text."""
    labels: str = "labels"
    """The labels of a text, a list."""
    target: str = "target"
    """The fields of a text: a JSON object, or one written as text."""
    question: str = "question"
    """A question about the context, or about the training rows as a whole."""
    answer: str = "answer"
    """The answer to a question, or a list of answers that are all right."""
    context: str = "context"
    """Put before what is asked: a passage, or a list joined by commas. May be missing in a row."""
    prompt: str = "prompt"
    """What is asked."""
    response: str = "response"
    """What should be answered; `completion` is read too unless another name is given here."""
    messages: str = "messages"
    """A conversation, its last message being the answer."""
    tools: str = "tools"
    """The functions that the last message of a conversation may call."""
    group: str = ""
    """What rows have in common, such as a template, source or customer; empty: no column. A group is in one split, and
    one row of it counts for the certificate."""
    file: str = ""
    """The name of a row's document (PDF, DOCX, HTML, text), whose text is the row's text; empty: no column."""
    at: str = ""
    """When a row was asked, in ISO 8601; empty: no column. `check` tells by it since when answers have changed."""
    tenant: str = ""
    """Who asked; empty: no column. `check` tells by it who is answered unlike all others."""
    tags: tuple[str, ...] = ()
    """Columns whose values requests send as tags too (`customer`, `channel`), for a guarantee `per_group`."""


ROW_FORMATS: dict[RowFormat, str] = {
    "label": "text + label",
    "labels": "text + labels",
    "target": "text + target",
    "question": "question + answer",
    "prompt": "prompt + response",
    "chat": "messages",
    "call": "messages + tools",
    "text": "text alone",
}
"""The shapes by the name that messages to the user give them."""

_FIELDS: dict[RowFormat, tuple[str, ...]] = {
    "label": ("text", "label"),
    "labels": ("text", "labels"),
    "target": ("text", "target"),
    "question": ("question", "answer"),
    "prompt": ("prompt", "response"),
    "chat": ("messages",),
    "call": ("messages", "tools"),
}
TAG = "tags."
_ROLES = ("system", "user", "assistant")
_NAMED = tuple(field for field in Columns.model_fields if field not in ("tags", "file"))
_BESIDE = ("group", "at", "tenant")
_KEYS_LOOKED_AT = 20
_BAD_CHARACTER = re.compile("[\x00\ud800-\udfff]")


class RowLayout(NamedTuple):
    """A recognized row format and, by field of Columns, the key that holds it in the row.

    Columns that are tags are under TAG and their name.
    """

    shape: RowFormat
    keys: dict[str, str]
    own_keys: tuple[str, ...]
    """Those that make the row: neither its group, its source nor a tag."""


def detect_layout(keys: Collection[str], columns: Columns, *, answered: bool = False) -> RowLayout | str:
    """Return the row format that these keys make, or the rule they break; `answered` refuses text alone."""
    names = _names(keys, columns)
    tags = {TAG + name: key for name in columns.tags if (key := _key(keys, name)) is not None}
    if lost := next((name for name in columns.tags if TAG + name not in tags), None):
        return f'no column "{lost}", which columns.tags names'
    for field in _BESIDE:
        if getattr(columns, field) and field not in names:
            return f'no column "{getattr(columns, field)}", which columns.{field} names'
    # None is a part of a shape. `smallfirst label` and `discover` write these columns of a model's answers.
    beside = tags | {field: names.pop(field) for field in _BESIDE if field in names}
    if {"teacher", "labelled_on"} <= set(keys):
        beside = {"source": "teacher"} | {name: name for name in _BESIDE[1:] if name in keys} | beside
    fits = [shape for shape, fields in _FIELDS.items() if names.keys() >= set(fields)]
    if "call" in fits:
        fits.remove("chat")
    if len(fits) > 1:
        named = [s for s in fits if columns.model_fields_set & set(_FIELDS[s])]
        if len(named) != 1:
            return f"fits two shapes at once: {ROW_FORMATS[fits[0]]} and {ROW_FORMATS[fits[1]]}"
        fits = named
    if fits:
        fields = [*_FIELDS[fits[0]], *(["context"] if "context" in names and fits != ["chat"] else [])]
        own = {field: names[field] for field in fields}
        return RowLayout(fits[0], own | beside, tuple(own.values()))
    alone = all(key == names.get("text") for key in names.values()) and bool(names)
    must = answered or "label" in columns.model_fields_set
    strays = [key.casefold() for key in keys if key not in names.values()][:_KEYS_LOOKED_AT]
    if alone and not must and not difflib.get_close_matches(columns.label.casefold(), strays, n=1, cutoff=0.75):
        return RowLayout("text", {"text": names["text"]} | beside, (names["text"],))
    return _what_is_missing(keys, names, columns)


def parse_plain_row(
    row: Mapping[str, Any], found: RowLayout, *, path: str, line: int, labels: Collection[str] | None
) -> Example | None:
    """Return a row of a text and one label, in half the time of `fold` and `parse_row`; None if these change it."""
    if found.shape != "label" or len(found.keys) != 2:
        return None
    text, label = row[found.keys["text"]], row[found.keys["label"]]
    if not (_is_plain(text) and _is_plain(label)) or (labels is not None and label not in labels):
        return None
    asked = (share_field_names(Message(role="user", content=text)),)
    return share_field_names(Example(messages=asked, answer=intern(label), shape="label", path=path, line=line))


def _is_plain(value: Any) -> bool:
    if type(value) is not str or not value or value.strip() != value:
        return False
    return "\0" not in value if value.isascii() else not _BAD_CHARACTER.search(value)


def parse_row(
    row: Mapping[str, Any], found: RowLayout, *, path: str, line: int, labels: Collection[str] | None
) -> tuple[Example | None, list[str]]:
    """Return the row as an Example and no rules, or None and every rule that its values break."""
    keys = found.keys
    if found.shape == "call":
        return _parse_call(row, found, path=path, line=line)
    if rules := [rule for field, key in keys.items() for rule in _value_rules(field, row[key], key)]:
        return None, rules
    messages, golds = _asked_and_golds(row, found)
    if labels is not None and found.shape in ("label", "labels"):
        given = golds if found.shape == "label" else row[keys["labels"]]
        if unknown := [label for label in given if label not in labels]:
            return None, [_not_a_label(label, tuple(labels)) for label in unknown]
    example = Example(
        messages=messages, answer=golds[0], also=golds[1:], shape=found.shape, path=path, line=line, **_marks(row, keys)
    )
    return share_field_names(example), []


def _parse_call(row: Mapping[str, Any], found: RowLayout, *, path: str, line: int) -> tuple[Example | None, list[str]]:
    """Return a conversation up to its last message as one text, with the call that this message makes."""
    keys = found.keys
    beside = {field: key for field, key in keys.items() if field not in _FIELDS["call"]}
    rules = [rule for field, key in beside.items() for rule in _value_rules(field, row[key], key)]
    messages, tools = (
        json.loads(row[keys[field]]) if isinstance(row[keys[field]], str) else row[keys[field]]
        for field in _FIELDS["call"]
    )
    try:
        if not isinstance(messages, list) or len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise ValueError(f'"{keys["messages"]}" must be a list of messages, the last one of the assistant')
        text, calls = to_text(read_turns(messages[:-1])), calls_of(messages[-1])
        functions = to_json(read_functions(tools))
    except (ValueError, AttributeError, RecursionError) as error:
        return None, [*rules, str(error)]
    rules += [f'"{keys["messages"]}" has half a surrogate pair'] * bool(_BAD_CHARACTER.search(text))
    if rules:
        return None, rules
    example = Example(
        messages=(share_field_names(Message(role="user", content=text)),),
        answer=write_call(**calls[0]) if len(calls) == 1 else NO_CALL,
        shape="call",
        path=path,
        line=line,
        tools=intern(functions),
        **_marks(row, keys),
    )
    return share_field_names(example), []


def _marks(row: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return what a row says beside what is asked and answered: group, day, tenant, source and tags."""
    return {
        **{field: _one_line(row[keys[field]]) for field in _BESIDE if field in keys},
        "source": str(row[keys["source"]] or "") if "source" in keys else "",
        "tags": {field.removeprefix(TAG): _one_line(row[key]) for field, key in keys.items() if field.startswith(TAG)},
    }


def _one_line(value: object) -> str:
    return " ".join(str(value).split())


def _asked_and_golds(row: Mapping[str, Any], found: RowLayout) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    keys = found.keys
    if found.shape == "chat":
        turns = (Message(role=m["role"], content=m["content"]) for m in row[keys["messages"]])
        *asked, last = map(share_field_names, turns)
        return tuple(asked), (last.content,)
    if found.shape == "text":
        return (), (row[keys["text"]],)
    question, gold = (row[keys[field]] for field in _FIELDS[found.shape])
    context = row[keys["context"]] if "context" in keys else ""
    if isinstance(context, list):
        context = ", ".join(context)
    text = f"{context.strip()}\n\n{question}" if context and context.strip() else question
    asked_once = (share_field_names(Message(role="user", content=text)),)
    if found.shape == "target":
        return asked_once, (to_json(gold if isinstance(gold, dict) else json.loads(gold)),)
    if found.shape == "labels":
        return asked_once, (to_json(gold),)
    return asked_once, tuple(dict.fromkeys(gold)) if isinstance(gold, list) else (gold,)


def to_json(value: object) -> str:
    """Return `value` as JSON on one line, as answers are kept: `{"people": 3, "names": ["a"]}`."""
    return json.dumps(value, ensure_ascii=False)


def to_row(example: Example) -> dict[str, Any]:
    """Return the example as a row with the usual column names, which `load_rows` reads as the same example."""
    if example.shape == "text":
        return {"text": example.answer}
    if example.shape == "label":
        return {"text": example.text, "label": example.answer}
    if example.shape in ("labels", "target"):
        return {"text": example.text, example.shape: json.loads(example.answer)}
    if example.shape == "question":
        return {"question": example.text, "answer": list(example.golds) if example.also else example.answer}
    if example.shape == "prompt":
        return {"prompt": example.text, "response": example.answer}
    if example.shape == "call":
        said = example.answer
        last = ConversationTurn("assistant", said) if said == NO_CALL else ConversationTurn("call", json.loads(said))
        return {"messages": to_messages([*from_text(example.text), last]), "tools": json.loads(example.tools)}
    turns = [*example.messages, Message(role="assistant", content=example.answer)]
    return {"messages": [{"role": m.role, "content": m.content} for m in turns]}


def _names(keys: Collection[str], columns: Columns) -> dict[str, str]:
    """Return, by field of Columns, the key of this row that holds it."""
    names = {f: key for f in _NAMED if (key := _key(keys, getattr(columns, f))) is not None}
    if "response" not in names and "response" not in columns.model_fields_set:
        completion = _key(keys, "completion")
        return names if completion is None else names | {"response": completion}
    return names


def _key(keys: Collection[str], name: str) -> str | None:
    """Return the key of that name, or else the only one that differs in case and outer spaces."""
    if not name or name in keys:
        return name or None
    alike = [key for key in keys if _plain_name(key) == _plain_name(name)]
    return alike[0] if len(alike) == 1 else None


@lru_cache(maxsize=4096)
def _plain_name(name: str) -> str:
    return name.replace("\ufeff", "").strip().casefold()


def _what_is_missing(keys: Collection[str], names: Mapping[str, str], columns: Columns) -> str:
    """Return the rule broken by keys that fit no format, in terms of the format of which most is there."""
    seen = ", ".join(f'"{key}"' for key in list(keys)[:_KEYS_LOOKED_AT]) or "no keys"
    fields = max(_FIELDS.values(), key=lambda fields: sum(field in names for field in fields))
    missing = [getattr(columns, field) for field in fields if field not in names]
    if len(missing) == len(fields):
        return f"fits no shape ({', '.join(ROW_FORMATS.values())}): the row has {seen}"
    return f'no column "{missing[0]}"; the row has {seen}{did_you_mean(missing[0], keys)}'


def _value_rules(field: str, value: object, key: str) -> list[str]:
    if field == "messages":
        return message_rules(value, key)
    name = f'"{key}"'
    if field == "source" or (field == "context" and (value is None or value == "" or value == [])):
        return []
    if field in _BESIDE or field.startswith(TAG):
        return [] if isinstance(value, str | int) and str(value).strip() else [f"{name} must be text or a number"]
    if field in ("labels", "answer", "context") and isinstance(value, list):
        if not value and field == "answer":
            return [f"{name} is an empty list"]
        return [rule for i, item in enumerate(value) for rule in text_rules(item, f"{name}[{i}]")]
    if field == "labels":
        return [f"{name} must be a list of labels, not {_kind(value)}"]
    if field == "target" and not isinstance(value, str):
        return _object_rules(value, name)
    rules = text_rules(value, name)
    if field == "target" and not rules:
        try:
            read = json.loads(str(value))
        except (ValueError, RecursionError):
            return [f"{name} is text that is not JSON"]
        return _object_rules(read, name)
    return rules


def _object_rules(value: object, name: str) -> list[str]:
    """Return the rules that a JSON object breaks; one from a table may hold what JSON cannot."""
    if not isinstance(value, dict):
        return [f"{name} must be a JSON object, not {_kind(value)}"]
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:  # NaN; a date or bytes; nested too deeply
        return [f"{name} is no JSON object: {error}"]
    return [f"{name} has half a surrogate pair"] if _BAD_CHARACTER.search(text) else []


def text_rules(value: object, name: str) -> list[str]:
    """Return the rules that `value` breaks as a text; `name` is what messages call it."""
    if not isinstance(value, str):
        return [f"{name} must be text, not {_kind(value)}"]
    if not value.strip():
        return [f"{name} is empty"]
    if bad := _BAD_CHARACTER.search(value):
        what = "a NUL character" if bad.group() == "\x00" else "half a surrogate pair"
        return [f"{name} has {what} at position {bad.start() + 1}"]
    return []


def message_rules(value: object, key: str) -> list[str]:
    """Return the rules that `value` breaks as a conversation that ends with its answer; `key` is its column."""
    if not isinstance(value, list):
        return [f'"{key}" must be a list of messages, not {_kind(value)}']
    rules = [rule for i, message in enumerate(value) for rule in _one_message(message, f"{key}[{i}]")]
    roles = [] if rules else [message["role"] for message in value]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not rules and (not turns or turns != ["user", "assistant"] * (len(turns) // 2)):
        return [f'"{key}": system first or not at all, then user and assistant in turn; the last one is the answer']
    return rules


def _one_message(message: object, name: str) -> list[str]:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        given = ", ".join(list(message)[:_KEYS_LOOKED_AT]) if isinstance(message, dict) else _kind(message)
        return [f"{name} must be an object with role and content alone, not {given}"]
    rules = text_rules(message["content"], f"{name} content")
    if message["role"] not in _ROLES:
        rules.insert(0, f"{name} has role {_quoted(message['role'])}: use system, user or assistant")
    return rules


@lru_cache(maxsize=1024)
def _not_a_label(answer: str, labels: tuple[str, ...]) -> str:
    near = did_you_mean(answer, labels) if len(answer) <= 100 else ""
    return f"label {_quoted(answer)} is not one of the {len(labels)} labels{near}"


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else _kind(value)
    return f'"{text[:60]}{"…" if len(text) > 60 else ""}"'


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "an object")


# Folding

_TRIMMED = {
    "label": ("text", "label"),
    "labels": ("text", "labels"),
    "target": ("text",),
    "question": ("question", "answer"),
}
_ANSWERS = ("label", "labels", "answer")
N_PLACES = 3
"""Places named of each kind of folding, which changes no meaning."""


def is_empty_row(values: Mapping[str, Any], layout: RowLayout | None = None) -> bool:
    """Return True if nothing stands in the row, or in the columns that make it."""
    return all(is_blank(values[key]) for key in (values if layout is None else layout.own_keys))


class Folding:
    """Folds the rows of one source and notes what it folded."""

    def __init__(self) -> None:
        self._n: dict[str, int] = defaultdict(int)
        self._places: dict[str, list[str]] = defaultdict(list)

    def fold(self, values: Mapping[str, Any], layout: RowLayout, path: str, line: int) -> Mapping[str, Any]:
        """Return the row with labels as text and no spaces around what is compared as a whole."""
        folded = dict(values)
        for field, key in layout.keys.items():
            if field in _ANSWERS and not isinstance(folded[key], str):
                folded[key] = self._each(folded[key], _as_text)
                if folded[key] is not None and folded[key] != values[key]:
                    self.count(f'numbers, or true and false, in "{key}"', path, line)
            before = folded[key]
            if field in _TRIMMED.get(layout.shape, ()):
                folded[key] = self._each(before, lambda value: value.strip() if isinstance(value, str) else value)
                if folded[key] != before:
                    self.count(f'spaces around "{key}"', path, line)
        return folded

    @property
    def notes(self) -> tuple[Finding, ...]:
        """One finding for each kind of folding, with its number of rows and the first places."""
        rules = {"empty": "left out", "spaces": "read without them", "numbers,": "read as the text that they are"}
        return tuple(
            make_finding("note", f"{what}: {n:,} row{'s' * (n > 1)}", rules[what.split()[0]], self._places[what], n=n)
            for what, n in self._n.items()
        )

    def count(self, what: str, path: str, line: int) -> None:
        """Note a row that is left out or read otherwise, by one of the words of `notes`."""
        self._n[what] += 1
        if len(self._places[what]) < N_PLACES:
            self._places[what].append(f"{path}:{line}")

    @staticmethod
    def _each(value: Any, change: Any) -> Any:
        return [change(item) for item in value] if isinstance(value, list) else change(value)


def scalar_text(value: Any) -> str:
    """Return a scalar of a table as text: `3` and not 3.0, `true` and not True."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def is_blank(value: Any) -> bool:
    """Return True for what says nothing: null, NaN, an empty text or list."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or value in ([], {})


def _as_text(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # what pandas writes for a value that is missing
    return scalar_text(value) if isinstance(value, int | float) else value
