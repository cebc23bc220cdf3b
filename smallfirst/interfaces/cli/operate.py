"""Verbs about this installation: who may use its server, and shell completion."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from smallfirst.interfaces.cli.options import JSON, LEDGER, OF_TASK, VerbGroup, verb

if TYPE_CHECKING:
    from smallfirst.ledger.keys import ApiKey, KeyPolicy, KeyStore

COMPLETION_VARIABLE = "_SMALLFIRST_COMPLETE"
GRACE = "Seconds for which the old key still works."
LIMIT = click.IntRange(min=1)


@verb(
    "smallfirst completion bash > ~/.local/share/bash-completion/completions/smallfirst",
    "smallfirst completion zsh >> ~/.zshrc",
    "smallfirst completion fish > ~/.config/fish/completions/smallfirst.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes verbs, options and paths."""
    from click.shell_completion import get_completion_class

    make = get_completion_class(shell)
    assert make is not None
    click.echo(make(ctx.find_root().command, {}, "smallfirst", COMPLETION_VARIABLE).source())


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
def create(name: str, role: str | None, owner: str | None, as_json: bool, **terms: Any) -> None:
    """Make a key called NAME and show it, this once."""
    expires_on: datetime | None = terms.pop("expires_on")
    _show_once(
        *_key_store().create(name, _terms(role or "user", expires_on, terms), owner=owner),
        as_json=as_json,
    )


@keys.command()
@click.argument("name_or_id")
@click.option("--grace-s", default=0.0, show_default=True, type=click.FloatRange(0, 366 * 86_400), help=GRACE)
@OF_TASK
@LEDGER
@JSON
def rotate(name_or_id: str, grace_s: float, as_json: bool) -> None:
    """Replace a key and show the new one, this once: it keeps name, role, limits, files, jobs and models."""
    _show_once(*_key_store().rotate(name_or_id, grace_s=grace_s), as_json=as_json)


def _show_once(key: ApiKey, secret: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"key": secret, **_told(key)}, indent=2))
        return
    click.echo(secret)
    click.echo(f"{_in_words(key)}\nThe key is not kept anywhere: copy it now. next: smallfirst keys list", err=True)


@keys.command("list")
@OF_TASK
@LEDGER
@JSON
def list_(as_json: bool) -> None:
    """Show all keys, oldest first: what they are for, not the keys."""
    from smallfirst.base.paths import ledger_place

    place = ledger_place()
    key_store = _key_store() if isinstance(place, str) or place.exists() else None
    found = key_store.entries() if key_store else ()
    if as_json:
        click.echo(json.dumps([_told(key) for key in found], indent=2))
        return
    if not found:
        click.echo(f"no keys in {place}\nnext: smallfirst keys create NAME")
    for key in found:
        click.echo(_in_words(key))


@keys.command()
@click.argument("name_or_id")
@OF_TASK
@LEDGER
def revoke(name_or_id: str) -> None:
    """Take keys back, by their name or one's id: requests with them are refused from then on."""
    key = _key_store().revoke(name_or_id)
    click.echo(f"revoked {key.name} ({key.id})")


def _key_store() -> KeyStore:
    from smallfirst.ledger.keys import home_key_store

    return home_key_store()


def _terms(role: str, expires_on: datetime | None, terms: dict[str, Any]) -> KeyPolicy:
    from smallfirst.base.records import parse_record
    from smallfirst.ledger.keys import KeyPolicy

    day = expires_on.date() if expires_on else None
    return parse_record(KeyPolicy, {**terms, "role": role, "expires_on": day}, where="options")


def _told(key: ApiKey) -> dict[str, Any]:
    shown = key.model_dump(mode="json", exclude={"sha256", "terms"})
    shown["owner"] = key.shown_owner
    return {**shown, "state": key.state(), **key.policy.model_dump(mode="json")}


def _in_words(key: ApiKey) -> str:
    """One line: name, id, state, role, models, limits, days."""
    terms = key.policy
    limits = [
        f"{n:,} {what}"
        for n, what in (
            (terms.requests_per_minute, "requests/min"),
            (terms.tokens_per_minute, "tokens/min"),
            (terms.max_in_flight, "at once"),
        )
        if n is not None
    ]
    parts = [
        f"{key.name:<20} {key.id}  {key.state():<8} {terms.role:<6}",
        f"models {', '.join(terms.models) or 'all'}",
        ", ".join(limits) or "no limits",
        f"created {key.created_at:%Y-%m-%d}",
        *([f"owner {key.shown_owner}"] if key.owner != key.id else []),
        *([f"until {terms.expires_on}"] if terms.expires_on else []),
        *([f"ends {key.ends_at:%Y-%m-%d %H:%M} UTC"] if key.ends_at else []),
    ]
    return "  ".join(parts)
