"""Which tasks were taken over, and which share of each: a file that the command line writes and the proxy follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.base.files import locked
from smallfirst.base.paths import home, state_folder
from smallfirst.base.records import Record
from smallfirst.traffic.task_source import TaskSource

FILE_NAME = "takeovers.json"
LEARNT = "learnt"
"""Folder of the learnt task below that of the drafted one."""
State = Literal["shadow", "live", "stepped back"]
"""shadow: the large model answers, the small one beside it; stepped back: the same, since something has changed."""
Cause = Literal["", "person", "prompt", "model", "guarantee"]


class TenantStepBack(Record):
    """The one tenant whose requests alone the large model answers again."""

    tenant: str
    """Name of its key."""
    cause: Cause
    why: str
    at: AwareDatetime


class TakeOver(Record):
    """A learnt task, as it is served."""

    task: str
    folder: Path
    """Folder of its `source.json`; what was learnt is below it."""
    state: State = "shadow"
    share: float = Field(default=0.0, ge=0, le=1)
    """Share of its requests for which the small model may answer, in [0, 1]; kept while it has stepped back."""
    version: int = 0
    """Version of its model in the registry; another one is loaded at once."""
    changed_at: AwareDatetime = datetime.fromtimestamp(0, UTC)
    promise: str = ""
    """What its certificate promises, in words; empty while nothing is promised."""
    certificate: str = ""
    """Fingerprint of the certificate that the second look put in force; another one is loaded at once."""
    second_look: str = ""
    """What the second look found, in one sentence without its end; empty before it."""
    cause: Cause = ""
    why: str = ""
    """What led to its state, in one sentence."""
    tenant_back: TenantStepBack | None = None
    """For whom a live task has stepped back, until a person takes it over again; a second tenant ends it for all."""

    @property
    def live_share(self) -> float:
        """Share of requests for which the small model may answer now."""
        return self.share if self.state == "live" else 0.0

    def check_format(self) -> None:
        """Raise ConfigError, with an example, unless every recorded answer comes back byte for byte."""
        source = TaskSource.of(self.folder)
        check = source.format_check if source else None
        if check is not None and not check.is_exact:
            raise ConfigError(
                f"{self.task}: {check.n_read - check.n_exact} of {check.n_read} recorded answers do not come back byte "
                f"for byte\n  the large model: {check.recorded}\n  written again:   {check.rendered}",
                hint="--accept-format, if the application reads both alike",
            )

    def moved(self, state: State, *, cause: Cause, why: str, share: float | None = None) -> TakeOver:
        """Return it in another state, as of now; what a person does ends a tenant's step back."""
        changes = {"state": state, "cause": cause, "why": why, "changed_at": datetime.now(UTC)}
        changes |= {} if share is None else {"share": share}
        return self.model_copy(update=changes | ({"tenant_back": None} if cause == "person" else {}))

    @property
    def serves(self) -> tuple[Path, int, str]:
        """What is loaded for it."""
        return self.folder, self.version, self.certificate

    @property
    def about_second_look(self) -> str:
        """What the second look found, and the command that follows where it waits for one; empty before it."""
        waits = self.second_look and self.certificate and self.state == "shadow"
        return f"{self.second_look}; ready: {self.command}" if waits else self.second_look

    @property
    def command(self) -> str:
        """The command that lets the small model answer."""
        return f"smallfirst take-over {self.task} --share 0.1"

    def stepped_back(self, tenant: str, cause: Cause, why: str, *, one_tenant: bool) -> TakeOver:
        """Return it after evidence of a tenant: back for this one alone, or for all if it is the only or second one."""
        other = self.tenant_back
        if self.state != "live" or (other and other.tenant == tenant):
            return self
        if not (one_tenant or other):
            alone = TenantStepBack(tenant=tenant, cause=cause, why=why, at=datetime.now(UTC))
            return self.model_copy(update={"tenant_back": alone})
        before = f"; tenant {other.tenant} had stepped back: {other.why}" if other else ""
        return self.moved("stepped back", cause=cause, why=why + before)


Change = Callable[[TakeOver | None], TakeOver]
"""From what the file says of a task, if it names it, to what it shall say."""


class _Content(Record):
    tasks: tuple[TakeOver, ...] = ()


class TakeOvers:
    """The file of one state folder. Any process may change it; each change is one task's."""

    def __init__(self, path: Path | None = None) -> None:
        """Use the file at `path`, else that of the state folder; it may be missing."""
        self.path = path or state_folder() / FILE_NAME

    def read(self) -> Mapping[str, TakeOver]:
        """Return the learnt tasks by name."""
        found = _Content.load(self.path).tasks if self.path.exists() else ()
        return {one.task: one for one in found}

    def get(self, task: str) -> TakeOver:
        """Return a task. Raise ConfigError if it was not learnt."""
        known = self.read()
        if task not in known:
            raise ConfigError(
                f"{task} was not learnt{did_you_mean(task, known)}; learnt so far: {', '.join(known) or 'nothing'}",
                hint=f"smallfirst learn discovered/{task}",
            )
        return known[task]

    def put(self, changed: TakeOver) -> TakeOver:
        """Write one task, in place of what the file said of it; return it."""
        return self.update(changed.task, lambda _: changed)

    def update(self, task: str, change: Change) -> TakeOver:
        """Replace what the file says of a task by what `change` makes of it, with nobody in between; return it."""
        if self.path == state_folder() / FILE_NAME:
            home()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock")):
            known = dict(self.read())
            changed = change(known.get(task))
            if changed != known.pop(task, None):
                _Content(tasks=(*known.values(), changed)).save(self.path)
        return changed

    @property
    def stamp(self) -> int:
        """A number that changes with the file."""
        return self.path.stat().st_mtime_ns if self.path.exists() else 0
