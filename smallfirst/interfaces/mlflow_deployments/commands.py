"""`smallfirst endpoints`: list, show, start, stop and delete the endpoints of this machine, or read their logs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from smallfirst.progress import format_duration, format_table

JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
NAME = click.argument("name")
COLUMNS = ("NAME", "STATE", "URL", "TRAFFIC", "AGE")


@click.group(invoke_without_command=True)
@click.pass_context
def endpoints(ctx: click.Context) -> None:
    """List, show, start, stop and delete endpoints on this machine."""
    if not ctx.invoked_subcommand:
        ctx.invoke(list_endpoints)


@endpoints.command("list")
@JSON
def list_endpoints(as_json: bool = False) -> None:
    """List endpoints by name; one whose server was killed shows as NOT_READY."""
    from smallfirst.interfaces.mlflow_deployments.lifecycle import all_endpoints
    from smallfirst.interfaces.mlflow_deployments.listing import describe

    found = [describe(endpoint) for endpoint in all_endpoints()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found:
        rows = [(e["name"], e["state"]["ready"], e["url"], _traffic(e), _age(e)) for e in found]
        click.echo("\n".join(format_table([COLUMNS, *rows])))
    else:
        click.echo('no endpoint yet: mlflow.deployments.get_deploy_client("smallfirst").create_endpoint(name, config)')


@endpoints.command()
@NAME
@JSON
def show(name: str, as_json: bool) -> None:
    """Show one endpoint: its address, models, shares of the traffic and notes."""
    from smallfirst.interfaces.mlflow_deployments.lifecycle import find
    from smallfirst.interfaces.mlflow_deployments.listing import describe

    found = describe(find(name))
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(summarize(found)))


@endpoints.command()
@NAME
def start(name: str) -> None:
    """Start the server of an endpoint that was stopped or killed; secrets are read from this environment."""
    from smallfirst.interfaces.mlflow_deployments import lifecycle

    started = lifecycle.start(name, log=lambda text: click.echo(text, err=True))
    click.echo(f"{name}: {'answers' if started else 'runs already'}")


@endpoints.command()
@NAME
def stop(name: str) -> None:
    """Stop the server of an endpoint once its running requests are done; the endpoint is kept."""
    from smallfirst.interfaces.mlflow_deployments import lifecycle

    click.echo(f"{name}: {'stopped' if lifecycle.stop(name) else 'no server ran'}")


@endpoints.command()
@NAME
def delete(name: str) -> None:
    """Delete an endpoint once its running requests are done; its rows of the ledger stay."""
    from smallfirst.interfaces.mlflow_deployments import lifecycle

    click.echo(f"{name}: {'deleted' if lifecycle.delete(name) else 'there is none'}")


@endpoints.command()
@NAME
@click.option("--lines", type=click.IntRange(min=1), default=50, show_default=True, help="Last lines to print.")
def logs(name: str, lines: int) -> None:
    """Print the last output of an endpoint's server."""
    from smallfirst.interfaces.mlflow_deployments.lifecycle import find
    from smallfirst.jobs.supervisor import output_tail

    click.echo(output_tail(find(name).output, lines))


def summarize(endpoint: dict[str, Any]) -> list[str]:
    """Return the description of an endpoint, one line for each known value."""
    state = endpoint["state"]
    lines = {
        "name": endpoint["name"],
        "state": f"{state['ready']}, {state['config_update']}",
        "why": state.get("why"),
        "url": f"{endpoint['url']}/v1",
        "traffic": _traffic(endpoint),
        "entities": ", ".join(_entity(entity) for entity in endpoint["config"]["served_entities"]),
        "config": f"number {endpoint['config']['config_version']}",
    }
    return [f"{name:<10}{value}" for name, value in lines.items() if value] + [
        f"note      {n}" for n in endpoint["notes"]
    ]


def _entity(entity: dict[str, Any]) -> str:
    if "external_model" in entity:
        return f"{entity['name']} ({entity['external_model']['provider']}: {entity['external_model']['name']})"
    live = f", version {entity['live_version']} answers" if "live_version" in entity else ""
    return f"{entity['name']} ({entity['entity_name']} {entity['entity_version']}{live})"


def _traffic(endpoint: dict[str, Any]) -> str:
    routes = (endpoint["config"].get("traffic_config") or {}).get("routes", [])
    shares = [(r.get("served_entity_name") or r.get("served_model_name"), r["traffic_percentage"]) for r in routes]
    if shares:
        return ", ".join(f"{name} {percent} %" for name, percent in shares)
    own = endpoint.get("smallfirst", {})
    return "cascade" if own.get("strategy") == "cascade" else "all to one"


def _age(endpoint: dict[str, Any]) -> str:
    return format_duration(datetime.now(UTC) - datetime.fromtimestamp(endpoint["creation_timestamp"] / 1000, UTC))
