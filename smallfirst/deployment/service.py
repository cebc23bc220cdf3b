"""Deploy tasks on a server: each one's audited Router, the models behind it, and `auto` over all tasks.

When the registry's aliases move, by a promotion or a rollback, the server follows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from smallfirst.base.errors import ConfigError
from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.billing.saved import Amount, evaluated_costs
from smallfirst.deployment.hot_swap import HotSwapModels, ModelProxy, ModelSet, NotReadyYet, RegistryWatcher, one_line
from smallfirst.deployment.monitoring_routes import MonitoringRoutes
from smallfirst.deployment.task_deployment import DeployedVersion, TargetVersions, TaskDeployment, check_models_answer
from smallfirst.ledger.ledger import Ledger
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.models.pricing import PriceBook
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.routing.auto import AutoRouter, TaskSelector
from smallfirst.routing.domain import PROFILE_FILE
from smallfirst.serving.plugins import Plugin

_log = logging.getLogger("smallfirst.serving")

AUTO = "auto"
"""Name under which all tasks of a server are reached at once."""
POLL_INTERVAL_S = 5.0
"""Seconds between two lookups of the aliases."""
LINGER_S = 2.0
"""Seconds that a replaced version stays open after its last request, so that its answers reach its own monitor."""
_TRIAL_TOKENS = 8


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


class DeployedTasks(Plugin):
    """The plugin over the tasks of one server, with the served models in `models`."""

    def __init__(self, deployments: Sequence[TaskDeployment], ledger: Ledger, *, poll_interval_s: float) -> None:
        self.models = HotSwapModels()
        self._targets = {each.name: TaskTarget(each, self) for each in deployments}
        self._replaced: list[DeployedVersion] = []
        self._monitoring = MonitoringRoutes([target.deployed.router for target in self._targets.values()], ledger)
        self.routes, self.collectors = self._monitoring.routes, self._monitoring.collectors
        self.watcher = RegistryWatcher(
            self.models, list(self._targets.values()), interval_s=poll_interval_s, linger_s=LINGER_S
        )
        auto = self._create_auto()
        self.models.put([*(target.deployed.models for target in self._targets.values()), *([auto] if auto else [])])

    @property
    def by_task(self) -> Mapping[str, AuditedRouter]:
        return self._monitoring.by_task

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
            self._monitoring.answered(id, request, completion)
            return
        # An audit tells something about the certificate that was in force, and about no other.
        counted = completion.model_copy(update={"route": route.model_copy(update={"audited": False})})
        self._monitoring.answered(id, request, counted)
        owner.answered(id, request, completion)

    async def refresh(self) -> None:
        await self._monitoring.refresh()

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
        self._monitoring.by_task[name] = new.router
        moved = f"moved from {old.versions.description} to {new.versions.description}, which answers"
        self.record_state(new.router, old.router.monitor.state, f"the registry's aliases {moved}")

    def record_state(self, router: AuditedRouter, before: str, why: str) -> None:
        """Log a change and write it to the ledger, so that explanations of answers show it."""
        _log.warning("%s: %s", router.name, why)
        try:
            router.note_version(before, why)
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
        folders = {name: deployed.profile_folder for name, deployed in known.items()}
        selector = TaskSelector.load(folders, price=deployments[0].file.prices.machine)
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

    def recovered(self) -> None:
        """Do nothing: the version that the aliases name answers."""
