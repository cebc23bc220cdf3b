"""`smallfirst endpoints`: list, start and stop the endpoints of this machine; MLflow's own command does the rest."""

from __future__ import annotations

import json

import click

from smallfirst.progress import format_table

NAME = click.argument("name")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print all that is known of each as JSON.")
@click.pass_context
def endpoints(ctx: click.Context, as_json: bool) -> None:
    """List endpoints; one whose server was killed shows as NOT_READY.

    `mlflow deployments create-endpoint`, `update-endpoint`, `get-endpoint` and `delete-endpoint`, each with
    `-t smallfirst`, do the rest.
    """
    if ctx.invoked_subcommand:
        return
    from smallfirst.interfaces.mlflow_deployments.lifecycle import all_endpoints
    from smallfirst.interfaces.mlflow_deployments.listing import describe

    found = [describe(endpoint) for endpoint in all_endpoints()]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found:
        rows = [(e["name"], e["state"]["ready"], e["url"], e["log"]) for e in found]
        click.echo("\n".join(format_table([("NAME", "STATE", "URL", "LOG"), *rows])))
    else:
        click.echo('no endpoint yet: mlflow.deployments.get_deploy_client("smallfirst").create_endpoint(name, config)')


@endpoints.command()
@NAME
def start(name: str) -> None:
    """Start the server of an endpoint that was stopped or killed; secrets are read from this environment."""
    from smallfirst.interfaces.mlflow_deployments import lifecycle

    click.echo(f"{name}: {'answers' if lifecycle.start(name) else 'runs already'}")


@endpoints.command()
@NAME
def stop(name: str) -> None:
    """Stop the server of an endpoint once its running requests are done; the endpoint is kept."""
    from smallfirst.interfaces.mlflow_deployments import lifecycle

    click.echo(f"{name}: {'stopped' if lifecycle.stop(name) else 'no server ran'}")
