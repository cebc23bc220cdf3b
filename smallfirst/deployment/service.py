"""Deploy tasks on a server: each one's audited Router, the models behind it, and `auto` over all tasks.

When the registry's aliases move, by a promotion or a rollback, the server follows.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from smallfirst.base.errors import ConfigError
from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.billing.saved import Amount, evaluated_costs
from smallfirst.deployment.hot_swap import HotSwapModels, ModelProxy, ModelSet, NotReadyYet, RegistryWatcher, one_line
from smallfirst.deployment.review_queue import QueueRoutes, mark
from smallfirst.deployment.second_look import CAUSE
from smallfirst.deployment.task_deployment import DeployedVersion, TargetVersions, TaskDeployment, check_models_answer
from smallfirst.ledger.ledger import Ledger, LedgerUnavailable
from smallfirst.ledger.rows import FeedbackRow, StateRow, standing
from smallfirst.ledger.sums import DrawnAudits
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.models.pricing import PriceBook
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.routing.auto import AutoRouter, TaskSelector
from smallfirst.routing.domain import PROFILE_FILE, TaskProfile
from smallfirst.routing.monitor import not_watched
from smallfirst.serving.errors import ApiError
from smallfirst.serving.plugins import Plugin, PluginRequest, PluginRoute

_log = logging.getLogger("smallfirst.serving")

AUTO = "auto"
"""Name under which all tasks of a server are reached at once."""
POLL_INTERVAL_S = 5.0
"""Seconds between two lookups of the aliases."""
LINGER_S = 2.0
"""Seconds that a replaced version stays open after its last request, so that its answers reach its own monitor."""
_TRIAL_TOKENS = 8
STATES = ("live", "shadow", "fallback")
_MAX_BODY_BYTES = 64 * 1024
_COUNTED = timedelta(days=30)
"""Days over which audits without a verdict are counted."""
MAX_VERDICTS = 16
"""Verdicts of users, and of judges, that are kept on one answer: they may disagree, but must not fill the ledger."""


def deploy(
    files: Sequence[TaskFile],
    ledger: Ledger,
    *,
    live: bool = True,
    store_bodies: bool = False,
    poll_interval_s: float | None = None,
) -> DeployedTasks:
    """Return the plugin that serves several tasks: each one's Router, small and large model, and `auto` over all.

    `live=False` answers the large path from recordings. With `poll_interval_s` the registry's aliases are polled and
    followed until the plugin is closed. Raise StageMissing if a task has no champion or certificate, ConfigError if two
    tasks share a name.
    """
    names: set[str] = set()
    for file in files:
        if file.name in names or file.name == AUTO:
            raise ConfigError(f"two things would be served as {file.name!r}", hint="give each task a name of its own")
        names.add(file.name)
    deployments = [TaskDeployment(file, ledger, live=live, store_bodies=store_bodies) for file in files]
    deployed = DeployedTasks(deployments, ledger, poll_interval_s=poll_interval_s or POLL_INTERVAL_S)
    if poll_interval_s:
        deployed.watcher.start()
    return deployed


class MonitoringRoutes(Plugin):
    """Feedback, states and metrics of the Routers of one server.

    A user gives feedback on answers to keys of the same owner; it is kept. It never changes a bound, since people
    report wrong answers more readily than right ones. A judge's first verdict does, on an answer that chance drew.
    """

    def __init__(self, routers: Sequence[AuditedRouter], ledger: Ledger) -> None:
        self.by_task = {router.name: router for router in routers}
        self._ledger, self._queue = ledger, QueueRoutes(self.by_task, ledger)
        self._answers: Counter[tuple[str, str]] = Counter()
        self._cost_usd: Counter[str] = Counter()
        self.collectors = (_RouterMetrics(self),)
        self.routes = (
            PluginRoute("POST", "/v1/feedback", self._feedback, "user"),
            PluginRoute("GET", "/v1/routers", self._states),
            *self._queue.routes,
        )

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        route = completion.route
        if route is None:
            return
        self._answers[route.task, route.stage] += 1
        self._cost_usd[route.task] += completion.cost_usd  # type: ignore[assignment]  # a Counter holds any number
        if router := self.by_task.get(route.task):
            router.answered(id, request, completion)

    async def _feedback(self, call: PluginRequest) -> dict[str, Any]:
        body = _checked(await call.json(max_bytes=_MAX_BODY_BYTES))
        row = await asyncio.to_thread(self._ledger.get, body["id"])
        if row is None or row.status != 200 or not (call.may_judge or row.owner == call.caller):
            raise ApiError(404, "There is no answer with this id.", param="id", code="answer_not_found")
        implied = {} if body.get("verdict") else await self._queue.verdict(row, body["answer"])
        known = {"at": datetime.now(UTC), "caller": call.caller, "name": call.caller_name, "judge": call.may_judge}
        feedback = FeedbackRow.model_validate({**body, **implied, **known})
        earlier = await asyncio.to_thread(self._ledger.entries, FeedbackRow, id=feedback.id)
        if sum(one.judge == feedback.judge for one in earlier) >= MAX_VERDICTS:
            raise ApiError(409, f"There are {MAX_VERDICTS} verdicts on this answer already.", param="id", code="judged")
        router = self.by_task.get(row.task or "")
        if router is None:
            await self._ledger.append_async(feedback)
        else:
            feedback = await router.feedback(feedback)
        told = {"object": "feedback", "id": row.id, "verdict": feedback.verdict, "audit": feedback.counted}
        if router is not None and feedback.counted:
            told["live_error"] = router.monitor.live_error.model_dump()
        replaced = [mark(one) for one in standing(earlier) if one.judge]
        return told | ({"replaces": replaced[0] if replaced else None} if feedback.judge else {})

    async def refresh(self) -> None:
        """Take over what other processes have written, as far as the ledger can be read."""
        for router in list(self.by_task.values()):
            with suppress(LedgerUnavailable):
                await router.follow()

    async def _states(self, _: PluginRequest) -> dict[str, Any]:
        await self.refresh()
        routers = list(self.by_task.values())
        return {"object": "list", "data": [await asyncio.to_thread(_status, router) for router in routers]}


class DeployedTasks(MonitoringRoutes):
    """The plugin over the tasks of one server, with the served models in `models`."""

    def __init__(self, deployments: Sequence[TaskDeployment], ledger: Ledger, *, poll_interval_s: float) -> None:
        self.models = HotSwapModels()
        self._targets = {each.name: TaskTarget(each, self) for each in deployments}
        self._replaced: list[DeployedVersion] = []
        super().__init__([target.deployed.router for target in self._targets.values()], ledger)
        self.watcher = RegistryWatcher(
            self.models, list(self._targets.values()), interval_s=poll_interval_s, linger_s=LINGER_S
        )
        auto = self._create_auto()
        self.models.put([*(target.deployed.models for target in self._targets.values()), *([auto] if auto else [])])

    def describe(self) -> Mapping[str, str]:
        return {name: router.standing.in_words for name, router in self.by_task.items()}

    def measured(self, task: str) -> Evaluation | None:
        """Return the large model on the test rows of the run whose version answers; None where it was not measured."""
        target = self._targets.get(task)
        return RunFolder(target.deployed.profile_folder.parent).evaluation("large", "test") if target else None

    def prices(self, task: str) -> PriceBook | None:
        """Return the prices of a task's settings, or with an empty name those of the first task."""
        target = self._targets.get(task or next(iter(self._targets)))
        return target.deployment.file.prices if target else None

    def evaluated(self, tasks: Sequence[str]) -> Mapping[str, Amount]:
        """Return what `evaluated_costs` says of tasks, those of this server and others in its ledger."""
        own = {name: target.deployment.file.folder for name, target in self._targets.items()}
        return evaluated_costs({task: own.get(task) for task in tasks})

    def answered(self, id: str, request: Request, completion: Completion) -> None:
        """Count the answer and hand it to the audits of the version that gave it."""
        route = completion.route
        routers = [self.by_task.get(route.task if route else ""), *(old.router for old in self._replaced)]
        owner = next((router for router in routers if router and router.gave(completion)), routers[0])
        if route is None or owner is routers[0] or owner is None:
            super().answered(id, request, completion)
            return
        # An audit tells something about the certificate that was in force, and about no other.
        counted = completion.model_copy(update={"route": route.model_copy(update={"audited": False})})
        super().answered(id, request, counted)
        owner.answered(id, request, completion)

    async def aclose(self) -> None:
        await self.watcher.stop()
        await self.models.aclose()
        for target in self._targets.values():
            for model in target.deployment.shared:
                await model.aclose()

    def replace(self, name: str, old: DeployedVersion, new: DeployedVersion) -> None:
        """Let `new` answer in the place of `old`, by its name and by `auto`."""
        retired = self.models.retired
        self._replaced = [*(version for version in self._replaced if version.models in retired), old]
        try:
            auto = self._create_auto()
        except Exception:  # requests by name matter more than those by `auto`
            _log.exception("%s: auto keeps its earlier profile of the task", name)
            auto = self.models.active.get(AUTO)
        self.models.put([new.models, *([auto] if auto else [])], without=() if auto else (AUTO,))
        self.by_task[name] = new.router
        moved = f"moved from {old.versions.description} to {new.versions.description}, which answers"
        self.record_state(new.router, old.router.monitor.state, f"the registry's aliases {moved}")

    def record_state(self, router: AuditedRouter, before: str, why: str) -> None:
        """Log a change and write it to the ledger, so that explanations of answers show it."""
        _log.warning("%s: %s", router.name, why)
        try:
            router.ledger.append(router.audits.row(before, router.monitor.state, why, "version"))
        except Exception:  # a change of version does not depend on a full disk
            _log.exception("%s: the ledger did not take a row", router.name)

    def _create_auto(self) -> ModelSet | None:
        known = {
            name: target.deployed
            for name, target in self._targets.items()
            if (target.deployed.profile_folder / PROFILE_FILE).exists()
        }
        if not known:
            return None
        deployments = [target.deployment for target in self._targets.values()]
        general = next((each.general for each in deployments if each.general is not None), None)
        routers: dict[str, Model] = {
            name: ModelProxy(self.models, name, deployed.router) for name, deployed in known.items()
        }
        profiles = {name: TaskProfile.load(one.profile_folder, one.encoder) for name, one in known.items()}
        selector = TaskSelector(profiles, price=deployments[0].file.prices.machine)
        auto = AutoRouter(selector, routers, general)
        return ModelSet(AUTO, {AUTO: auto}, auto)


class TaskTarget:
    """A task whose aliases the RegistryWatcher follows."""

    def __init__(self, deployment: TaskDeployment, owner: DeployedTasks) -> None:
        self.deployment, self.name, self._owner = deployment, deployment.name, owner
        self.deployed = deployment.load(deployment.target_versions())

    def current(self) -> TargetVersions:
        return self.deployed.versions

    def wanted(self) -> TargetVersions:
        return self.deployment.target_versions()

    def load(self, wanted: TargetVersions) -> DeployedVersion:
        """Load a version and ask its models one request of the task, on the server's own event loop."""
        if not self.deployment.certified(wanted.champion):
            raise NotReadyYet("it has no certificate yet")  # `calibrate` follows `promote`
        sample = Request(messages=self.deployment.sample, max_tokens=_TRIAL_TOKENS)
        models = self._owner.models
        return self.deployment.load(wanted, trial=lambda loaded: models.run(check_models_answer(loaded, sample)))

    def activate(self, loaded: DeployedVersion) -> None:
        old, self.deployed = self.deployed, loaded
        self._owner.replace(self.name, old, loaded)

    def failed(self, wanted: TargetVersions | None, error: Exception) -> None:
        router, stays = self.deployed.router, self.deployed.versions.description
        if wanted is None:
            _log.warning("%s: the aliases cannot be looked up: %s; %s stays", self.name, one_line(error), stays)
        else:
            why = f"{wanted.description} is not served: {one_line(error)}; {stays} stays"
            self._owner.record_state(router, router.monitor.state, why)


class _RouterMetrics(Collector):
    """The Routers' metrics, read from their monitors on every scrape, so that they cannot disagree."""

    def __init__(self, routes: MonitoringRoutes) -> None:
        self._routes = routes

    def collect(self) -> Iterator[Metric]:
        families: list[Metric] = []
        family = functools.partial(_family, families)
        count, gauge = CounterMetricFamily, GaugeMetricFamily
        answers = family(count, "answers", "Answers by task and stage.", "stage")
        for (task, stage), n in sorted(self._routes._answers.items()):
            answers([task, stage], n)
        cost = family(count, "cost_usd", "What the answers cost.")
        for task, usd in sorted(self._routes._cost_usd.items()):
            cost([task], usd)
        state = family(gauge, "state", "1 for the state a task is in.", "state")
        audits = family(gauge, "audits", "Audits the live error rests on.")
        error = family(gauge, "live_error", "Live error of kept answers, valid at any time.", "end")
        what = "Quantities that are watched, in the guarantee's unit, with their limit."
        watched = family(gauge, "watched", what, "quantity", "guaranteed", "end")
        alarms = family(count, "alarms", "Alarms by cause.", "cause")
        for task, router in self._routes.by_task.items():
            found = router.monitor.live_error
            for name in STATES:
                state([task, name], float(name == router.monitor.state))
            audits([task], found.n)
            for end in ("value", "low", "high"):
                error([task, end], getattr(found, end))
            for watch, one in zip(router.monitor.watches, _watched(router), strict=True):
                for end in ("limit", "value", "low", "high"):
                    watched([task, one["quantity"], str(not watch.quantity.by_gate).lower(), end], one[end])
            for cause, n in Counter(change.cause for change in router.monitor.alarms).items():
                alarms([task, cause], n)
        yield from families


def _family(families: list[Metric], kind: type[Any], name: str, what: str, *labels: str) -> Callable[..., None]:
    """Append a family of metrics by task and `labels`, and return what adds a metric to it."""
    families.append(made := kind(f"smallfirst_{name}", what, labels=["task", *labels]))
    return made.add_metric  # type: ignore[no-any-return]


def _watched(router: AuditedRouter) -> list[dict[str, Any]]:
    """Return each quantity under watch with its limit and its mean so far, valid at any time."""
    monitor, in_force = router.monitor, bool(router.standing.promise)
    found = []
    for watch in monitor.watches:
        quantity = watch.quantity
        found.append(
            {
                "quantity": quantity.name,
                "in_words": quantity.words,
                "guaranteed": not quantity.by_gate and in_force,
                "found_broken": watch.exceeded,
                "limit": quantity.limit,
                **monitor.mean(watch).model_dump(),
            }
        )
    return found


def _status(router: AuditedRouter) -> dict[str, Any]:
    found, standing = router.monitor.live_error, router.standing
    states = router.ledger.entries(StateRow, task=router.name, limit=50)
    now = datetime.now(UTC)
    drawn = router.ledger.drawn(now - _COUNTED, now, task=router.name)
    return {
        "task": router.name,
        "state": router.monitor.state,
        "why": next((s.why for s in reversed(states) if s.before != s.after), ""),
        "guarantee": standing.promise,
        "standing": standing.model_dump(),
        "second_look": next((s.why for s in reversed(states) if s.cause == CAUSE), ""),
        "outcome": router.outcome.model_dump(mode="json"),
        "watched": _watched(router),
        "not_watched": list(not_watched(router.router.certificate, router.auditing.judge)),
        "live_error": found.model_dump(),
        "audit_share": router.monitor.audit_share,
        "judged_by": router.auditing.judge,
        "audits": next((one.model_dump() for one in DrawnAudits.of(drawn.values())), None),
        "changes": [{"at": s.at.isoformat(), "before": s.before, "after": s.after, "why": s.why} for s in states[-5:]],
    }


def _checked(body: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(body) - {"id", "verdict", "answer"})
    if unknown:
        raise ApiError(400, f'Unknown field: "{unknown[0][:64]}".', param=unknown[0][:64], code="unknown_parameter")
    id, verdict, answer = (body.get(name) for name in ("id", "verdict", "answer"))
    if not isinstance(id, str) or not 1 <= len(id) <= 128:
        raise ApiError(400, "`id` is the id of a response, such as chatcmpl-….", param="id")
    if verdict not in ("right", "wrong") and not (verdict is None and answer is not None):
        raise ApiError(400, '`verdict` is "right" or "wrong".', param="verdict")
    if answer is not None and (not isinstance(answer, str) or len(answer) > 32_768):
        raise ApiError(400, "`answer` is the right answer as text, at most 32,768 characters.", param="answer")
    return body
