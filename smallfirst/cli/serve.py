"""`smallfirst serve`: the Routers of one or several tasks, and `auto` over them, behind one address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from smallfirst.models.protocol import Model
    from smallfirst.serving.ledger.ledger import Ledger
    from smallfirst.serving.plugins import Plugin
    from smallfirst.serving.settings import ServeSettings


@click.command()
@click.argument("task_yamls", type=click.Path(path_type=Path), nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=int)
@click.option("--api-key-sha256", "api_keys_sha256", multiple=True, help="SHA-256 of an accepted key; may be repeated.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, help="A name that the Host header may have.")
@click.option("--replay-large", is_flag=True, help="Answer the large path from recordings only.")
@click.option("--store-bodies", is_flag=True, help="Keep questions and answers in the ledger: harvest needs them.")
@click.option("--keep-days", default=30, show_default=True, type=click.IntRange(min=0), help="Days that they are kept.")
@click.option("--follow-s", default=5.0, show_default=True, help="Look the registry's aliases up so often; 0: never.")
@click.option("--trace", is_flag=True, help="Write traces of answers to MLflow.")
@click.option(
    "--explain", "only_explain", is_flag=True, help="Say which engine answers for each model and why, and end."
)
@click.option("--fine-tuning", is_flag=True, help="Let clients upload rows and fine-tune: spends this machine's time.")
@click.option("--base", "bases", multiple=True, help="With --fine-tuning: NAME or NAME=FOLDER that may be trained.")
def serve(
    task_yamls: tuple[Path, ...], fine_tuning: bool, bases: tuple[str, ...], only_explain: bool, **options: Any
) -> None:
    """Serve each task's Router, its small and its large model, and `auto` over all tasks, as an OpenAI-style API.

    Loopback alone until there is a key (`smallfirst keys create NAME`). The registry's aliases are followed: a
    promotion or a rollback changes who answers, without a restart.
    """
    from smallfirst.interfaces.mlflow_deployments.listing import EndpointListing
    from smallfirst.interfaces.openai_finetuning.plugin import extension_for
    from smallfirst.paths import home
    from smallfirst.records import parse_record
    from smallfirst.serving.app import serve as serve_models
    from smallfirst.serving.auth.key_store import FILE_NAME, KeyStore
    from smallfirst.serving.ledger.ledger import Ledger
    from smallfirst.serving.plugins import PluginGroup
    from smallfirst.serving.settings import ServeSettings

    wanted = task_yamls or (Path("task.yaml"),)
    if only_explain:
        click.echo(_engines(wanted))
        return
    live = {name: options.pop(name) for name in ("replay_large", "follow_s", "trace")}
    keep_days = options.pop("keep_days")
    chosen = parse_record(ServeSettings, options, where="options")
    extensions: list[Plugin] = [extension_for(bases)] if fine_tuning else []
    ledger, keyring = Ledger(home() / "ledger.db", keep_bodies_days=keep_days), KeyStore(home() / FILE_NAME)
    models: Mapping[str, Model] = {}
    if not fine_tuning or any(path.exists() for path in wanted):  # else only what is fine-tuned here is served
        models, more = _of_tasks(wanted, ledger, chosen, live)
        extensions = [*more, *extensions, EndpointListing(lambda: models)]
    serve_models(models, ledger=ledger, settings=chosen, extension=PluginGroup(*extensions), keyring=keyring)


def _of_tasks(
    wanted: Sequence[Path], ledger: Ledger, settings: ServeSettings, live: dict[str, Any]
) -> tuple[Mapping[str, Model], list[Plugin]]:
    """The models of the tasks, and what watches them."""
    from smallfirst.deployment.service import deploy, trace_plugin
    from smallfirst.project.task_file import read_task_file

    files = [read_task_file(path) for path in wanted]
    found = deploy(
        files,
        ledger,
        live=not live["replay_large"],
        store_bodies=settings.store_bodies,
        follow_every_s=live["follow_s"] or None,
    )
    traces = [trace_plugin(files, store_bodies=settings.store_bodies)] if live["trace"] else []
    return found.models, [found.watch, *traces]


def _engines(wanted: Sequence[Path]) -> str:
    """Which engine answers for each model of the tasks, and why; nothing is loaded."""
    from smallfirst.models.engines.engine import ModelSource
    from smallfirst.models.engines.selection import choose_engine, detect_environment, explain_choices
    from smallfirst.pipeline.large_model import general_source
    from smallfirst.project.task_file import read_task_file
    from smallfirst.registry import versions

    environment, choices = detect_environment(), []
    for file in map(read_task_file, wanted):
        version = versions.resolve(f"{file.register_to}@{versions.CHAMPION}")
        choices.append(choose_engine(ModelSource(version.folder, f"{file.name}-small"), environment))
        if (source := general_source(file, download=False)) is not None:
            choices.append(choose_engine(source._replace(name=f"{file.name}-large"), environment))
    return explain_choices(choices, environment.hardware)
