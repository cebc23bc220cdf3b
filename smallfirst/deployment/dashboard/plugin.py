"""The plugin that serves the page and its figures, behind the keys and roles of the server.

Everybody may read the files of the page: they hold no data, and load nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from smallfirst.deployment.audited_router import AuditedRouter
from smallfirst.deployment.billing.saved import Amount
from smallfirst.deployment.dashboard.watch import watch
from smallfirst.ledger.ledger import Ledger
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.models.pricing import PriceBook
from smallfirst.models.protocol import Model
from smallfirst.routing.auto import AutoRouter
from smallfirst.serving.plugins import ApiError, Plugin, PluginRequest, PluginRoute, Response, current_caller

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def page_files() -> Iterator[tuple[str, bytes, Mapping[str, str]]]:
    """Yield path, content and headers of each file; the page is at `/`, all others are below `/dashboard/`."""
    for file in resources.files(__package__).joinpath("static").iterdir():
        path = "/" if file.name == "index.html" else f"/dashboard/{file.name}"
        content_type = f"{_TYPES[file.name.rpartition('.')[2]]}; charset=utf-8"
        yield path, file.read_bytes(), {"content-type": content_type, **HEADERS}


class Dashboard(Plugin):
    """The page of one server: its models, its ledger, and the Routers of its tasks."""

    def __init__(
        self,
        models: Mapping[str, Model],
        ledger: Ledger,
        routers: Mapping[str, AuditedRouter],
        measured: Callable[[str], Evaluation | None] = lambda task: None,
        prices: Callable[[str], PriceBook | None] = lambda task: None,
        evaluated: Callable[[Sequence[str]], Mapping[str, Amount]] = lambda tasks: {},
    ) -> None:
        """`models` and `routers`, by name, may change while the server runs.

        `measured` returns the large model of a task on test rows, `prices` those of its settings, `evaluated` what
        `billing.saved.evaluated_costs` says of tasks.
        """
        self._models, self._ledger, self._routers = models, ledger, routers
        self._measured, self._prices, self._evaluated = measured, prices, evaluated
        self.routes = (
            *map(_file_route, page_files()),
            PluginRoute("GET", "/v1/dashboard/session", self._session, "user"),
            PluginRoute("GET", "/v1/dashboard/watch", self._watch),
            PluginRoute("GET", "/v1/dashboard/answers/{id}", self._answer, "user"),
        )

    async def _session(self, call: PluginRequest) -> dict[str, Any]:
        """Say who asks and what there is to ask: the tasks, `auto` among them, and the single models."""
        caller = current_caller()
        usable = [name for name in self._models if caller.may_use(name)]
        tasks = [name for name in usable if name in self._routers or name == AutoRouter.name]
        return {
            "at": "server",
            "role": call.role,
            "name": caller.name,
            "tasks": tasks,
            "models": [name for name in usable if name not in tasks],
        }

    async def _watch(self, call: PluginRequest) -> dict[str, Any]:
        for router in [*self._routers.values()]:
            await router.follow()  # what other processes found, also where nobody asks
        tasks = (self._measured, self._prices, self._evaluated)
        return await asyncio.to_thread(watch, self._ledger, self._routers, dict(call.query), *tasks)

    def _answer(self, call: PluginRequest) -> dict[str, Any]:
        """Return what the ledger holds about an answer, without texts; users see their own key's alone."""
        row = self._ledger.get(call.path_params["id"])
        if row is None or not (call.may_judge or row.owner == call.caller):
            raise ApiError(404, "There is no answer with this id.", param="id", code="answer_not_found")
        texts = {"request_text", "answer_text", "request_sha256", "charges", "trail"}
        lists = {"bill": row.bill, "steps": row.steps}
        return row.model_dump(mode="json", exclude=texts) | {
            name: [one.model_dump(mode="json") for one in found] for name, found in lists.items()
        }


def _file_route(file: tuple[str, bytes, Mapping[str, str]]) -> PluginRoute:
    path, content, headers = file
    return PluginRoute("GET", path, lambda _: Response(content, headers=headers), "public")
