"""`smallfirst serve`: the Routers of one or several tasks, and `auto` over them, behind one address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("task_yamls", type=click.Path(path_type=Path), nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=int)
@click.option("--api-key-sha256", "api_keys_sha256", multiple=True, help="SHA-256 of an accepted key; may be repeated.")
@click.option("--replay-large", is_flag=True, help="Answer the large path from recordings only.")
@click.option("--store-bodies", is_flag=True, help="Keep questions and answers in the ledger: harvest needs them.")
@click.option("--fine-tuning", is_flag=True, help="Let clients upload rows and fine-tune: spends this machine's time.")
@click.option("--base", "bases", multiple=True, help="With --fine-tuning: NAME or NAME=FOLDER that may be trained.")
def serve(
    task_yamls: tuple[Path, ...], replay_large: bool, fine_tuning: bool, bases: tuple[str, ...], **settings: Any
) -> None:
    """Serve each task's Router, its small and its large model, and `auto` over all tasks, as an OpenAI-style API."""
    from smallfirst.golive.service import served
    from smallfirst.home import home
    from smallfirst.interfaces.openai_fine_tuning import extension_for
    from smallfirst.records import parse_record
    from smallfirst.serving.app import serve as serve_models
    from smallfirst.serving.extension import Extension, Together
    from smallfirst.serving.ledger import Ledger
    from smallfirst.serving.settings import ServeSettings
    from smallfirst.taskfile import read_taskfile

    tuning: list[Extension] = [extension_for(bases)] if fine_tuning else []
    wanted = task_yamls or (Path("task.yaml"),)
    alone = bool(tuning) and not any(path.exists() for path in wanted)  # only what is fine-tuned here is served
    ledger, chosen = Ledger(home() / "ledger.db"), parse_record(ServeSettings, settings, where="options")
    if alone:
        serve_models({}, ledger=ledger, settings=chosen, extension=Together(*tuning))
        return
    files = [read_taskfile(path) for path in wanted]
    found = served(files, ledger, live=not replay_large, store_bodies=chosen.store_bodies)
    serve_models(found.models, ledger=ledger, settings=chosen, extension=Together(found.watch, *tuning))
