"""What is served: each task's Router under watch, the models behind it, and `auto` over all tasks.

A Router stands on what its champion's version carries in the registry: the certificate, and the reference that live
traffic is compared with. Without an issued certificate the small model runs in shadow, beside the large one that
answers, unless somebody has signed for it in task.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from smallfirst.deployment.registry_watcher import AUTO, RegistryWatcher
from smallfirst.deployment.task_deployment import TaskDeployment
from smallfirst.errors import ConfigError
from smallfirst.project.task_file import TaskFile
from smallfirst.registry.traces import TraceStore
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.tracing import EXPERIMENT, TracePlugin


def deploy(
    files: Sequence[TaskFile],
    ledger: Ledger,
    *,
    live: bool = True,
    store_bodies: bool = False,
    poll_interval_s: float | None = None,
) -> RegistryWatcher:
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
    desks = [TaskDeployment(file, ledger, live=live, store_bodies=store_bodies) for file in files]
    following = RegistryWatcher(desks, ledger, every_s=poll_interval_s or 0.0)
    if poll_interval_s:
        following.start()
    return following


def trace_plugin(files: Sequence[TaskFile], *, store_bodies: bool = False, share: float = 1.0) -> TracePlugin:
    """The extension that writes traces of answers to the MLflow store; hosted models are told by their address."""
    endpoints = [file.large.endpoint for file in files if file.large and file.large.endpoint]
    providers = {endpoint.model: urlsplit(endpoint.base_url).hostname or "" for endpoint in endpoints}
    return TracePlugin(TraceStore(EXPERIMENT), store_bodies=store_bodies, share=share, providers=providers)
