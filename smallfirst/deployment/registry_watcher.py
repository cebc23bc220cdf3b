"""A running server follows the registry: `@champion` moves, and the answers come from the version it names now.

Every few seconds a thread of its own looks the aliases up (a lookup in the registry's tables, no file is read). If one
has moved, by a promotion or a rollback in whatever process, the version is verified, loaded and tried beside the one
that answers, and then takes its place in one step. Requests under way end where they began. A version that is damaged,
has no certificate yet or does not answer is reported, in the log and in the ledger, and the one before stays. The price
is the memory of two versions during a change.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.hot_swap import HotSwapModels, ModelSet
from smallfirst.deployment.monitoring_routes import MonitoringRoutes
from smallfirst.deployment.task_deployment import DeployedVersion, TargetVersions, TaskDeployment, check_models_answer
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.routing.auto import AutoRouter
from smallfirst.routing.ood.detector import PROFILE_FILE
from smallfirst.routing.ood.task_selector import TaskSelector
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import StateRow
from smallfirst.serving.plugins import Plugin

_log = logging.getLogger("smallfirst.serving")

AUTO = "auto"
"""Name under which every task of a server is reached at once."""
POLL_INTERVAL_S = 5.0
"""Seconds between two lookups."""
LINGER_S = 2.0
"""Seconds that a replaced version stays open after its last request: its answers are still told to its own watch."""
_TRIAL_S = 120.0
_LONGEST_WAIT_S = 60.0
_TRIAL_TOKENS = 8


@dataclass
class _Trouble:
    """A version that could not be taken."""

    wanted: TargetVersions | None
    said: str
    again_at_s: float = 0.0
    wait_s: float = POLL_INTERVAL_S


class RegistryWatcher(Plugin):
    """The extension over the Routers of one server, which follow their aliases once `start` was called."""

    def __init__(self, desks: Sequence[TaskDeployment], ledger: Ledger, *, every_s: float = POLL_INTERVAL_S) -> None:
        """Loads every task's champion. Raises what `Desk.standing` does."""
        self._desks, self._ledger, self._every_s = {desk.name: desk for desk in desks}, ledger, every_s
        self.models = HotSwapModels()
        """The served models by name."""
        self._standing = {desk.name: desk.standing(desk.wanted()) for desk in desks}
        self._past: list[DeployedVersion] = []
        self._trouble: dict[str, _Trouble] = {}
        self._routers = MonitoringRoutes([standing.live for standing in self._standing.values()], ledger)
        self.collectors, self.routes = self._routers.collectors, self._routers.routes
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._follow, name="follow", daemon=True)
        auto = self._auto()
        self.models.put([*(standing.crew for standing in self._standing.values()), *([auto] if auto else [])])

    @property
    def by_task(self) -> Mapping[str, AuditedRouter]:
        """The Routers that answer now."""
        return self._routers.by_task

    def start(self) -> None:
        """Begins to follow. A process that is told to stop ends it with `aclose`."""
        self._thread.start()

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """The answer is counted, and told to the watch of the version that gave it."""
        route = completion.route
        before = next((past.live for past in self._past if _gave(past.live, completion)), None)
        if route is None or before is None:
            self._routers.answered(id, request, completion)
            return
        # An audit of it says something about the certificate it was given under, and about no other.
        counted = completion.model_copy(update={"route": route.model_copy(update={"audited": False})})
        self._routers.answered(id, request, counted)
        before.answered(id, request, completion)

    async def aclose(self) -> None:
        """Follow no longer, then close every model."""
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 15)
        await self.models.aclose()
        for desk in self._desks.values():
            for model in desk.shared:
                await model.aclose()

    def look(self) -> list[str]:
        """One round: the tasks whose version was changed. Models that nobody asks any more are closed. Never raises."""
        changed = [name for name in self._desks if self._takes(name)]
        for crew in self.models.gone(idle_s=LINGER_S):
            self._close(crew)
        leaving = self.models.leaving
        self._past = [standing for standing in self._past if standing.crew in leaving]
        return changed

    def _follow(self) -> None:
        while not self._stop.wait(self._every_s):
            self.look()

    def _takes(self, name: str) -> bool:
        """True if the task is answered by another version now."""
        desk, wanted = self._desks[name], None
        try:
            wanted = desk.wanted()
            if wanted == self._standing[name].wanted:
                self._trouble.pop(name, None)
                return False
            if not self._due(name, wanted):
                return False
            if not desk.certified(wanted.champion):
                # What `promote` leaves and `calibrate` mends: looked for in every round.
                self._report(name, wanted, "it has no certificate yet", waits=False)
                return False
            return self._replace(name, desk.standing(wanted, trial=partial(self._try, desk)))
        except Exception as error:  # whatever is wrong with a new version, the one before answers
            self._report(name, wanted, str(error.args[0] if error.args else "") or type(error).__name__)
            return False

    def _replace(self, name: str, new: DeployedVersion) -> bool:
        if self._stop.is_set():
            asyncio.run(new.crew.aclose())
            return False
        old, self._standing[name] = self._standing[name], new
        self._past = [*self._past, old]
        try:
            auto = self._auto()
        except Exception:  # requests by name matter more than those by `auto`, which goes by what it knew
            _log.exception("%s: auto goes on with what it knew of the task", name)
            auto = self.models.active.get(AUTO)
        self.models.put([new.crew, *([auto] if auto else [])], without=() if auto else (AUTO,))
        self._routers.by_task[name] = new.live
        self._trouble.pop(name, None)
        moved = f"the registry's aliases moved from {old.wanted.in_words} to {new.wanted.in_words}"
        self._write(new.live, old.live.monitor.state, f"{moved}, which answers from now on")
        return True

    def _auto(self) -> ModelSet | None:
        """`auto` over the tasks that have a signature; None if there is none."""
        known = {name: s.signature for name, s in self._standing.items() if (s.signature / PROFILE_FILE).exists()}
        if not known:
            return None
        general = next((desk.general for desk in self._desks.values() if desk.general is not None), None)
        doors: dict[str, Model] = {name: self.models.door(name, self._standing[name].live) for name in known}
        auto = AutoRouter(TaskSelector.load(known), doors, general)
        return ModelSet(AUTO, {AUTO: auto}, auto)

    def _try(self, desk: TaskDeployment, models: Sequence[Model]) -> None:
        """Ask each model one request of the task, on the server's own event loop if there is one."""
        self._run(check_models_answer(models, Request(messages=desk.sample, max_tokens=_TRIAL_TOKENS)))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        loop = self.models.loop
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(work, loop).result(_TRIAL_S)
        else:
            asyncio.run(work)

    def _close(self, crew: ModelSet) -> None:
        try:
            self._run(crew.aclose())
        except Exception:
            _log.exception("%s: a version that was replaced could not be closed", crew.slot)

    def _due(self, name: str, wanted: TargetVersions) -> bool:
        trouble = self._trouble.get(name)
        return trouble is None or trouble.wanted != wanted or time.monotonic() >= trouble.again_at_s

    def _report(self, name: str, wanted: TargetVersions | None, why: str, *, waits: bool = True) -> None:
        """Once for each reason; the next try comes later each time, if it `waits`."""
        before, said = self._trouble.get(name), " ".join(why.split())[:500]
        again = before is not None and (before.wanted, before.said) == (wanted, said)
        wait_s = min(2 * before.wait_s, _LONGEST_WAIT_S) if before is not None and again else POLL_INTERVAL_S
        self._trouble[name] = _Trouble(wanted, said, time.monotonic() + wait_s * waits, wait_s)
        if again:
            return
        live, stays = self._standing[name].live, self._standing[name].wanted.in_words
        if wanted is None:
            _log.warning("%s: the aliases cannot be looked up: %s; %s stays", name, said, stays)
        else:
            self._write(live, live.monitor.state, f"{wanted.in_words} is not served: {said}; {stays} stays")

    def _write(self, live: AuditedRouter, before: str, why: str) -> None:
        """One line to the log, and a row of the task's state, so that explanations show it."""
        _log.warning("%s: %s", live.name, why)
        row = StateRow(
            at=datetime.now(UTC),
            task=live.name,
            before=before,
            after=live.monitor.state,
            why=why,
            certificate=live.certificate,
        )
        try:
            self._ledger.append(row)
        except Exception:  # a change of version does not hang on a full disk
            _log.exception("%s: the ledger did not take a row", live.name)


def _gave(live: AuditedRouter, completion: Completion) -> bool:
    """True if one of a Router's own models wrote the answer: their names hold the version."""
    stages = (*live.router.stages, *live.router.options.policy_stages)
    return any(stage.model.name == completion.answered_by for stage in stages)
