"""Verbs about this installation: who may use its server, what is left of a task, an assistant that uses its verbs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallfirst.base.errors import ConfigError
from smallfirst.base.progress import format_table
from smallfirst.interfaces.cli.options import JSON, LEDGER, OF_TASK, TASK, VerbGroup, show, verb

if TYPE_CHECKING:
    from smallfirst.ledger.keys import ApiKey, KeyStore

LIMIT = click.IntRange(min=1)
COLUMNS = ("NAME", "ID", "STATE", "ROLE", "MODELS", "LIMITS", "CREATED", "OWNER", "ENDS")


@click.group(cls=VerbGroup, examples=("smallfirst keys create ada", "smallfirst keys list"))
def keys() -> None:
    """Make, list, rotate and revoke the keys of clients.

    They are in the ledger. With at least one key its servers ask for one; a change takes effect within a second.
    """


@keys.command()
@click.argument("name")
@click.option("--admin", "role", flag_value="admin", help="Also for the queue, the Routers' states and metrics.")
@click.option("--judge", "role", flag_value="judge", help="Also for the queue; its verdicts on drawn answers count.")
@click.option("--model", "models", multiple=True, help="A served name it is for; may be repeated. Default: all.")
@click.option("--requests-per-minute", type=LIMIT)
@click.option("--tokens-per-minute", type=LIMIT, help="Read and written together.")
@click.option("--max-in-flight", type=LIMIT, help="Requests at once.")
@click.option("--expires", "expires_on", type=click.DateTime(["%Y-%m-%d"]), help="First day (UTC) without it.")
@click.option("--owner", help="Name or id of a key with which it shares files, jobs and models. Default: none.")
@OF_TASK
@LEDGER
@JSON
def create(
    name: str, role: str | None, expires_on: datetime | None, owner: str | None, as_json: bool, **limits: Any
) -> None:
    """Make a key called NAME and show it, this once."""
    from smallfirst.base.records import parse_record
    from smallfirst.ledger.keys import KeyPolicy

    day = expires_on.date() if expires_on else None
    policy = parse_record(KeyPolicy, {**limits, "role": role or "user", "expires_on": day}, where="options")
    _show_once(*_key_store().create(name, policy, owner=owner), as_json=as_json)


@keys.command()
@click.argument("name_or_id")
@click.option("--grace-s", default=0.0, show_default=True, type=click.FloatRange(0, 366 * 86_400),
              help="Seconds for which the old key still works.")  # fmt: skip
@OF_TASK
@LEDGER
@JSON
def rotate(name_or_id: str, grace_s: float, as_json: bool) -> None:
    """Replace a key and show the new one, this once: it keeps name, role, limits, files, jobs and models."""
    _show_once(*_key_store().rotate(name_or_id, grace_s=grace_s), as_json=as_json)


@keys.command("list")
@OF_TASK
@LEDGER
@JSON
def list_(as_json: bool) -> None:
    """Show all keys, oldest first: what they are for, not the keys."""
    from smallfirst.base.paths import ledger_place

    place = ledger_place()
    found = _key_store().entries() if isinstance(place, str) or place.exists() else ()
    if as_json:
        click.echo(json.dumps([_told(key) for key in found], indent=2))
    elif found:
        click.echo(_table(found))
    else:
        click.echo(f"no keys in {place}\nnext: smallfirst keys create NAME")


@keys.command()
@click.argument("name_or_id")
@OF_TASK
@LEDGER
def revoke(name_or_id: str) -> None:
    """Take keys back, by their name or one's id: requests with them are refused from then on."""
    key = _key_store().revoke(name_or_id)
    click.echo(f"revoked {key.name} ({key.id})")


@verb("smallfirst forget tickets --dry-run", "smallfirst forget tickets --yes")
@TASK
@LEDGER
@click.option("--answers", is_flag=True, help="Also what the large model answered and labelled, which was paid for.")
@click.option("--dry-run", is_flag=True, help="Only list what would be deleted.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@JSON
def forget(task_yaml: Path, answers: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete a task's runs, versions and kept texts, to start over.

    It lists them first, and asks. Rows, task.yaml and the ledger's bills stay. Refused while a run or a server uses
    the task.
    """
    from smallfirst.traffic.forget import forget as forget_task

    found = forget_task(task_yaml, answers=answers, carry_out=False)
    if dry_run or not found.deletes:
        show(found, as_json)
        return
    if not yes:
        click.echo("\n".join(found.in_words), err=True)
        if not sys.stdin.isatty():
            raise ConfigError("nothing was deleted: nobody can be asked here", hint="the same command with --yes")
        click.confirm("Delete this?", abort=True, err=True)
    show(forget_task(task_yaml, answers=answers), as_json)


@verb("smallfirst mcp")
def mcp() -> None:
    """Let an assistant use check, run, tasks, explain, discover.

    A Model Context Protocol server over standard input and output, for the tasks of the current folder.
    """
    from smallfirst.interfaces.cli.mcp_server import server

    server.run()


def _key_store() -> KeyStore:
    from smallfirst.ledger.keys import home_key_store

    return home_key_store()


def _show_once(key: ApiKey, secret: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"key": secret, **_told(key)}, indent=2))
        return
    click.echo(secret)
    click.echo(f"{_table([key])}\nThe key is not kept anywhere: copy it now. next: smallfirst keys list", err=True)


def _told(key: ApiKey) -> dict[str, Any]:
    shown = key.model_dump(mode="json", exclude={"sha256", "policy"})
    return {**shown, "state": key.state(), **key.policy.model_dump(mode="json")}


def _table(found: Iterable[ApiKey]) -> str:
    rows = [COLUMNS]
    for key in found:
        policy, ends = key.policy, key.ends_at or key.policy.expires_on
        named = {
            "requests/min": policy.requests_per_minute,
            "tokens/min": policy.tokens_per_minute,
            "at once": policy.max_in_flight,
        }
        limits = ", ".join(f"{n:,} {what}" for what, n in named.items() if n is not None)
        models, made = ", ".join(policy.models) or "all", f"{key.created_at:%Y-%m-%d}"
        owner = "" if key.owner == key.id else key.owner
        rows.append(
            (key.name, key.id, key.state(), policy.role, models, limits or "none", made, owner, str(ends or ""))
        )
    return "\n".join(format_table(rows))
