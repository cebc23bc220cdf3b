"""Forget a task, to start over: delete what its runs, versions and requests have left on this machine.

What people wrote and what was paid for stays: task.yaml and rows, the large model's answers unless they are asked for
too, and the rows of the ledger, which bills and audits rest on and which hold no text. So does the count of looks at
rows: another certificate on the same rows costs what it would have cost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

from smallfirst.base.errors import ConfigError, RegistryError
from smallfirst.base.paths import state_folder, state_of
from smallfirst.base.records import Record
from smallfirst.ledger.ledger import open_existing
from smallfirst.ledger.rows import LedgerRow
from smallfirst.path.finalists import LOOKS
from smallfirst.path.project.run_folder import not_served, only_run, refuse_second_run
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.registry import runs, versions
from smallfirst.traffic.task_source import LEARNT, TakeOvers

LET_GO_S = 10.0
"""Longest wait for a proxy to let go of a task that it no longer follows."""


class Remains(Record):
    """Something that a task has left."""

    what: str
    n_bytes: int = 0
    """Of its files on this machine."""


class Forgetting(Record):
    """What is deleted of a task, and what stays."""

    task: str
    deletes: tuple[Remains, ...]
    keeps: tuple[str, ...]
    done: bool = False

    @property
    def in_words(self) -> Iterator[str]:
        """What is or was deleted, with sizes, and what stays, in lines."""
        total = sum(one.n_bytes for one in self.deletes) / 1e6
        if self.done:
            yield f"{self.task} is forgotten: {total:,.1f} MB deleted"
            return
        yield f"forgetting {self.task} deletes {total:,.1f} MB:" if self.deletes else f"{self.task} has left nothing"
        yield from (f"  {one.what}" + (f"  {one.n_bytes / 1e6:,.1f} MB" if one.n_bytes else "") for one in self.deletes)
        yield from ("it keeps:", *(f"  {what}" for what in self.keeps))


class _Part(NamedTuple):
    what: Remains
    delete: Callable[[], object]


def forget(task: Path, *, answers: bool = False, carry_out: bool = True) -> Forgetting:
    """Delete what a task has left, or only say what that is; with `answers` also what the large model was paid for.

    A folder that `discover` drafted stands for what was learnt in it. Raise TrainingError while a run is under way,
    ConfigError while the task is served on this machine or taken over.
    """
    takeovers, folder = TakeOvers(), task.absolute()  # before another state folder is chosen
    folder = folder.parent if folder.is_file() else folder
    if (folder / LEARNT / "task.yaml").is_file():
        folder = folder / LEARNT
    file = read_task_file(folder)
    taken = takeovers.read().get(file.name)
    taken = taken if taken and taken.folder == file.folder.parent else None
    if taken and taken.state == "live":
        raise ConfigError(f"{file.name} is taken over", hint=f"smallfirst give-back {file.name}")
    with state_of(file.folder), ExitStack() as held:
        if carry_out:
            held.enter_context(only_run(file.name))
            if taken:
                takeovers.remove(file.name)
            held.enter_context(not_served(file.name, wait_s=LET_GO_S if taken else 0.0))
        elif (state_folder() / "tasks" / file.name).is_dir():
            refuse_second_run(file.name)
            with nullcontext() if taken else not_served(file.name):
                pass
        parts = list(_parts(file, answers=answers))
        deletes = [part.what for part in parts] + [Remains(what="its place among the learnt tasks")] * bool(taken)
        keeps = tuple(_kept(file, answers=answers))
        for part in parts if carry_out else ():
            part.delete()
    return Forgetting(task=file.name, deletes=tuple(deletes), keeps=keeps, done=carry_out)


def _parts(file: TaskFile, *, answers: bool) -> Iterator[_Part]:
    name, place = file.register_to, state_folder() / "tasks" / file.name
    folders = sorted(place.glob("*/"))
    try:
        known = [one for one in versions.list_versions(name) if one.tags.get("task", file.name) == file.name]
    except RegistryError:  # nothing is registered under this name
        known = []
    if known:
        shown = ", ".join(f"{one.version}{''.join(f' ({alias})' for alias in one.aliases)}" for one in known)
        what = Remains(what=f"{name}, version {shown}")
        yield _Part(what, partial(versions.delete, name, [one.version for one in known]))
    ids = dict.fromkeys(one.run_id for one in known if one.run_id)
    ids |= dict.fromkeys(runs.find_runs(file.name, [folder.name for folder in folders]))
    if ids:
        size = _size(place for id in ids for place in runs.run_files(id))
        yield _Part(Remains(what=f"{len(ids):,} runs in MLflow", n_bytes=size), lambda: [*map(runs.delete_run, ids)])
    if folders:
        what = Remains(what=f"{len(folders):,} run folders in {place}", n_bytes=_size(folders))
        yield _Part(what, lambda: [*map(shutil.rmtree, folders)])
    if (ledger := open_existing()) is not None:
        with closing(ledger):
            if n := ledger.count_bodies(file.name):
                texts = Remains(what=f"the texts of {n:,} answers and audits in {ledger.place}")
                yield _Part(texts, partial(_forget_texts, file.name))
    for folder in _paid(file) if answers else ():
        yield _Part(Remains(what=str(folder), n_bytes=_size([folder])), partial(shutil.rmtree, folder))


def _kept(file: TaskFile, *, answers: bool) -> Iterator[str]:
    yield "task.yaml, rows, and the weights of base models"
    if (ledger := open_existing()) is not None:
        with closing(ledger):
            n = ledger.count(LedgerRow, task=file.name)
            yield f"the ledger's rows, without texts, of {n:,} answers, with expenses and audits: it is append-only"
    if (state_folder() / "tasks" / file.name / LOOKS).exists():
        yield f"{LOOKS}: how often which rows have certified, which the next certificate has to count"
    if not answers:
        yield from (f"{folder}: was paid for; --answers deletes it too" for folder in _paid(file))


def _paid(file: TaskFile) -> list[Path]:
    """Return the folders of what the large model answered and labelled."""
    places = [state_folder() / room / file.name for room in ("recordings", "labels")]
    return [place for place in places if place.is_dir()]


def _forget_texts(task: str) -> None:
    if (ledger := open_existing()) is not None:
        with closing(ledger):
            ledger.forget_bodies(task)


def _size(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
