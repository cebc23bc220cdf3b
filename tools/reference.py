"""Write the reference pages from the code: docs/reference/settings.md and docs/reference/cli.md.

python tools/reference.py            # rewrite both pages
python tools/reference.py --check    # exit with 1 if a page differs
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import click
import pydantic
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
MADE_BY = "<!-- made by tools/reference.py -->"
WORDS = {str: "", int: "integer", float: "number", bool: "", Path: "path", Any: ""}
"""How a type is called; text and yes or no need no word."""
MANY = 6
"""So many verbs that explain an option alike share the explanation."""


def settings_page() -> str:
    """Return the page of all settings of task.yaml and gateway.yaml."""
    from smallfirst.path.project.task_file import TaskFile
    from smallfirst.routing.policies import POLICIES
    from smallfirst.tasks import TASK_KINDS
    from smallfirst.traffic.settings import GatewaySettings

    lines = [
        "# Settings of task.yaml and gateway.yaml",
        "",
        MADE_BY,
        "",
        "Every setting with its default and its meaning; a type is named where the default does not show it. Paths are",
        "relative to the file. A group's name is where its settings stand: `routing.guarantee` is",
        "`routing: {guarantee: {…}}`.",
        "",
        "## task.yaml",
        "",
    ]
    seen: dict[type, str] = {}
    lines += [*_list(TaskFile, skip={"folder", "settings"}), *_groups(TaskFile, "", seen)]
    for name, kind in TASK_KINDS:
        own = kind.setting_names()
        lines += ["", f"## kind: {name}", "", f"{_sentence(kind)} These settings stand beside `kind`.", ""]
        lines += _list(kind, only=own)
    for name, policy in POLICIES:
        lines += ["", f"## routing.policies, kind: {name}", "", _sentence(policy), "", *_list(policy, skip={"kind"})]
    lines += ["", "## gateway.yaml", "", "The settings of `smallfirst proxy` ([from traffic](../traffic.md)).", ""]
    lines += [*_list(GatewaySettings, skip={"folder"}), *_groups(GatewaySettings, "gateway.yaml: ", seen)]
    return "\n".join(lines) + "\n"


def _groups(record: type[pydantic.BaseModel], path: str, seen: dict[type, str]) -> Iterator[str]:
    """Yield a section for each field of `record` that is a record itself, and for those inside it; each record once."""
    for name, field in record.model_fields.items():
        parts = [*_parts(field.annotation), *(p for a in typing.get_args(field.annotation)[1:] for p in _parts(a))]
        inner = next((part for part in parts if _is_record(part)), None)
        if inner is None or not inner.model_fields:
            continue
        where = f"{path}{name}"
        if inner in seen:
            yield from ["", f"## {where}", "", f"The settings of `{seen[inner]}`, with defaults of its own."]
            continue
        seen[inner] = where
        yield from ["", f"## {where}", "", _sentence(inner), "", *_list(inner)]
        yield from _groups(inner, f"{where}.", seen)


def _list(
    record: type[pydantic.BaseModel], *, skip: set[str] | None = None, only: Sequence[str] | None = None
) -> list[str]:
    """Return a line for each setting: its name, its default or, without one, its type, and its meaning."""
    lines = []
    for name, field in record.model_fields.items():
        if name in (skip or ()) or (only is not None and name not in only):
            continue
        told = ", ".join(filter(None, (_type(field.annotation), _default(field))))
        meaning = " ".join((field.description or "").split())
        lines.append(f"- `{field.alias or name}`{f' ({told})' if told else ''}: {meaning}")
    return lines


def _default(field: pydantic.fields.FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if field.is_required() or value is PydanticUndefined:
        return "required"
    if isinstance(value, pydantic.BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    return "" if value is None or value in ((), "", {}) else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """Return a value as it would be written in task.yaml."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _type(annotation: Any) -> str:
    if annotation in WORDS:
        return WORDS[annotation]
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inside[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(filter(None, (_type(part) for part in inside if part is not type(None)))))
    if origin in (list, tuple, set, frozenset) or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        return "list"
    return "by name" if inspect.isclass(origin) else ""


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _parts(part)


def _is_record(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, pydantic.BaseModel)


def _sentence(kind: type) -> str:
    """Return the first sentence of a class's docstring."""
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def cli_page() -> str:
    """Return the page of all verbs with their arguments and options, by stage of work."""
    from smallfirst.interfaces.cli.main import COMMANDS, LAST_STAGE, STAGES, main

    lines = [
        "# Command line",
        "",
        MADE_BY,
        "",
        *inspect.cleandoc(sys.modules[main.callback.__module__].__doc__ or "").partition("\n\n")[2].splitlines(),
    ]
    told = Counter(line for verb in COMMANDS.names() for line in _options_below(COMMANDS.get(verb)))
    common = {line for line, times in told.items() if times >= MANY}
    lines += ["", "Options of many verbs, of which the name alone stands below:", "", *sorted(common)]
    stage_of = {verb: stage for stage, verbs in STAGES.items() for verb in verbs}
    for stage in STAGES:
        lines += ["", f"## {stage.capitalize()}"]
        for verb in COMMANDS.names():
            if stage_of.get(verb, LAST_STAGE) == stage:
                lines += _verb(COMMANDS.get(verb), f"smallfirst {verb}", common, level=3)
    return "\n".join(lines) + "\n"


def _verb(command: click.Command, name: str, common: set[str], *, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    usage = " ".join(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")
    usage = "" if isinstance(command, click.Group) else usage
    text = re.sub(r"^\x08$\n?", "", inspect.cleandoc(command.help or ""), flags=re.MULTILINE)
    yield from ["", f"{'#' * level} {name}", "", *([f"`{name} {usage}`", ""] if usage else []), *text.splitlines()]
    options = _options(command)
    if options:
        yield ""
    yield from (line for line in options if line not in common)
    if known := [options[line] for line in options if line in common]:
        yield "- " + ", ".join(f"`{option}`" for option in known)
    if isinstance(command, click.Group):
        for child in sorted(command.commands):
            yield from _verb(command.commands[child], f"{name} {child}", common, level=level + 1)


def _options(command: click.Command) -> dict[str, str]:
    """Return the names of the options of one command by the lines that explain them."""
    context = click.Context(command)
    found = {}
    for option in command.params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        written = ", ".join(option.opts) + ("" if option.is_flag else f" {option.make_metavar(context)}")
        value = option.default
        has_default = isinstance(value, str | int | float | Path) and value != "" and not option.is_flag
        shown = f" (`{value}`)" if has_default else ""
        found[f"- `{written}`{shown}: {' '.join((option.help or '').split())}"] = option.opts[0]
    return found


def _options_below(command: click.Command) -> Iterator[str]:
    yield from _options(command)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _options_below(child)


PAGES = {"settings.md": settings_page, "cli.md": cli_page}


def main() -> int:
    """Rewrite or check both pages; return the exit code."""
    stale = 0
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        page = FOLDER / name
        if "--check" in sys.argv:
            stale |= not page.is_file() or page.read_text(encoding="utf-8") != make()
        else:
            page.write_text(make(), encoding="utf-8")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
