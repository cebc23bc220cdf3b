"""Verbs that answer: `serve` the Routers of tasks, and `auto` over them, behind one address; `score` rows in bulk."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from smallfirst.base.errors import ConfigError
from smallfirst.base.progress import Progress
from smallfirst.interfaces.cli.options import ARGUMENTS, JSON, LEDGER, PATH, TASK, TASKS, load_task_file, show, verb

if TYPE_CHECKING:
    from smallfirst.models.protocol import Model
    from smallfirst.path.project.task_file import TaskFile
    from smallfirst.serving.plugins import Plugin
    from smallfirst.serving.replicas import Service
    from smallfirst.serving.settings import ServeSettings

FINE_TUNING = "openai_finetuning"
"""Plugin that `--fine-tuning` is about."""


@verb(
    "smallfirst serve tickets",
    "smallfirst serve tickets invoices --port 9000 --store-bodies",
    "smallfirst serve --model tales=main.texts.tales/1",
)
@TASKS
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=int)
@click.option("--allowed-host", "allowed_hosts", multiple=True, help="A name that the Host header may have.")
@click.option("--replay-large", is_flag=True, help="Answer the large path from recordings only.")
@click.option("--store-bodies", is_flag=True, help="Keep questions and answers in the ledger: harvest needs them.")
@click.option("--keep-days", default=30, show_default=True, type=click.IntRange(min=0), help="Days that they are kept.")
@click.option(
    "--keep-rows-days",
    type=click.IntRange(min=1),
    help="Days that rows of requests are kept; their sums, audits and expenses stay. Default: for ever.",
)
@LEDGER
@click.option("--follow-s", default=5.0, show_default=True, help="Look the registry's aliases up so often; 0: never.")
@click.option("--plugin", "plugin_names", multiple=True, help="Enable a plugin, such as openai_finetuning.")
@click.option("--fine-tuning", is_flag=True, help="Let clients fine-tune: --plugin openai_finetuning.")
@click.option(
    "--model", "references", multiple=True, metavar="NAME=REFERENCE", help="A registered model beside the tasks."
)
@click.option("--base", "bases", multiple=True, help="NAME or NAME=FOLDER that may be fine-tuned.")
@click.option("--replicas", type=click.IntRange(min=1), help="So many processes on Ray Serve, here or at RAY_ADDRESS.")
def serve(task_yamls: tuple[Path, ...], replicas: int | None, **options: Any) -> None:
    """Serve the Routers of tasks as an OpenAI-style API.

    Each task's Router, its small and its large model are served, and `auto` over all tasks.

    Loopback alone until there is a key (`smallfirst keys create NAME`). The registry's aliases are followed: a
    promotion or a rollback changes who answers, without a restart. A model named by --model answers as it is, with
    neither router nor certificate: one that continues text at /v1/completions, for example.
    """
    files, settings = _read_settings(task_yamls, options)
    if replicas:
        from smallfirst.serving.replicas import serve_replicas

        serve_replicas(click.get_current_context().meta[ARGUMENTS], replicas, settings=settings)
        return
    from smallfirst.serving.app import serve as serve_models

    service = _load(files, settings, options)
    serve_models(service.models, ledger=service.ledger, settings=service.settings, plugins=service.plugins)


def service_of(arguments: Sequence[str]) -> Service:
    """Return what `smallfirst serve` with these arguments answers with, loaded: a replica serves it."""
    with serve.make_context("serve", list(arguments)) as context, context.scope():
        options = {name: value for name, value in context.params.items() if name != "replicas"}
        return _load(*_read_settings(options.pop("task_yamls"), options), options)


def _read_settings(task_yamls: Sequence[Path], options: dict[str, Any]) -> tuple[list[TaskFile], ServeSettings]:
    """Return the task files and the server's settings; the state folder is that of the first task from now on."""
    from smallfirst.base.paths import state_of
    from smallfirst.base.records import parse_record
    from smallfirst.path.project.task_file import read_task_file
    from smallfirst.serving.settings import ServeSettings

    given = {name: value for name, value in options.items() if name in ServeSettings.model_fields}
    settings = parse_record(ServeSettings, given, where="options")
    wanted = task_yamls or (Path("task.yaml"),)
    # Without a task, only the models of the plugins and of --model are served.
    others = options["plugin_names"] or options["fine_tuning"] or options["references"]
    files = [read_task_file(path) for path in wanted] if any(path.exists() for path in wanted) or not others else []
    if files:  # ledger and keys of the server are those of its first task
        click.get_current_context().with_resource(state_of(files[0].folder))
        _refuse_other_keys()
    return files, settings


def _load(files: Sequence[TaskFile], settings: ServeSettings, options: dict[str, Any]) -> Service:
    """Load the models and plugins, and open the ledger."""
    from smallfirst.base.paths import ledger_place
    from smallfirst.deployment.dashboard.plugin import Dashboard
    from smallfirst.ledger.ledger import Ledger
    from smallfirst.serving.plugins import installed_plugins
    from smallfirst.serving.replicas import Service

    ledger = Ledger(
        ledger_place(create=True), keep_bodies_days=options["keep_days"], keep_rows_days=options["keep_rows_days"]
    )
    models: Mapping[str, Model] = {}
    plugins: list[Plugin] = []
    tasks: tuple[Any, ...] = ({},)
    if files:
        from smallfirst.deployment.service import deploy

        deployed = deploy(
            files,
            ledger,
            live=not options["replay_large"],
            store_bodies=settings.store_bodies,
            poll_interval_s=options["follow_s"] or None,
        )
        plugins.append(deployed)
        models = deployed.models
        tasks = (deployed.by_task, deployed.measured, deployed.prices, deployed.evaluated)
    if named := _registered(options["references"]):
        models = ChainMap(named, cast(MutableMapping[str, "Model"], models))
    enabled = {*options["plugin_names"], *([FINE_TUNING] if options["fine_tuning"] else [])}
    plugins += installed_plugins(models, enabled, options["bases"])
    plugins += [Dashboard(models, ledger, *tasks)] if models or plugins else []
    return Service(models, ledger, settings, plugins, files[0].folder if files else Path.cwd(), ledger_place())


def _registered(references: Sequence[str]) -> dict[str, Model]:
    """Return registered models by name, loaded. Raise ConfigError unless each is NAME=REFERENCE, or RegistryError."""
    from smallfirst.models.loading import load_model
    from smallfirst.registry import versions

    pairs = [reference.partition("=") for reference in references]
    if wrong := [name for name, _, reference in pairs if not (name and reference)]:
        raise ConfigError(
            f"--model {wrong[0]}: expected NAME=REFERENCE", hint="--model tales=main.texts.tales/1, or …@champion"
        )
    return {name: load_model(versions.resolve(at).folder, name=name) for name, _, at in pairs}


def _refuse_other_keys() -> None:
    """Raise ConfigError if the current folder's keys are not those of the server: it would be open, unnoticed."""
    from smallfirst.base.paths import ledger_place, state_folder
    from smallfirst.ledger.keys import KeyStore

    here, used = state_folder(Path.cwd()) / "ledger.db", state_folder() / "ledger.db"
    if used != ledger_place() or here == used or not here.exists() or used.exists():
        return
    if KeyStore(here).key_required:
        raise ConfigError(
            f"the keys in {here} are not this server's, which reads {used}",
            hint="make its keys with  smallfirst keys create NAME --task TASK , or set SMALLFIRST_HOME for both",
        )


@verb(
    "smallfirst score tickets mails.parquet --out scored --keep id",
    "smallfirst score tickets s3://bucket/mails/ --out scored --workers 8",
    "smallfirst score tickets mails.csv --out scored --model large --cap-usd 5",
)
@TASK
@click.argument("rows")
@click.option("--out", type=PATH, default="scored", show_default=True, help="Folder of the results.")
@click.option("--model", default="", help="small, large, a version, an alias or a model's folder. Default: the Router.")
@click.option("--keep", multiple=True, metavar="COLUMN", help="A column of ROWS that stays beside the answer.")
@click.option("--text", default="", metavar="COLUMN", help="The column that is asked.")
@click.option("--part-rows", type=int, default=2000, show_default=True, help="Rows of a part.")
@click.option("--workers", type=int, help="Processes on a Ray cluster: $RAY_ADDRESS, or one started here.")
@click.option("--retry-errors", is_flag=True, help="Ask again what ended in an error.")
@click.option("--cap-usd", type=float, help="Most that all answers may cost.")
@click.option("--yes", is_flag=True, help="Accept what a paid model costs without a cap.")
@JSON
def score(task_yaml: Path, rows: str, out: Path, as_json: bool, **settings: Any) -> None:
    """Answer ROWS in bulk; the same command goes on where it ended.

    ROWS is a file or folder of Parquet, JSON Lines or CSV, also in an object store. OUT gets part-00000.parquet, … with
    the row number, the answer, its confidence, route, cost and model, or the error of the row.
    """
    from smallfirst.base.records import parse_record
    from smallfirst.deployment.batch.score import ScoreOptions
    from smallfirst.deployment.batch.score import score as score_stage

    options = parse_record(ScoreOptions, settings, where="options")
    load_task_file(task_yaml)
    found = score_stage(task_yaml, rows, out, options=options, progress=Progress())
    show(found, as_json)
    if found.counts.n_errors:
        click.echo("next: the same command with --retry-errors", err=True)
