"""The ways in which MLflow's and Databricks' clients address a served name: in the path, not in the body.

    POST /endpoints/NAME/invocations                                as MLflow's gateway
    POST /serving-endpoints/NAME/invocations                        as Databricks
    POST /serving-endpoints/NAME/served-models/ENTITY/invocations   one entity of an endpoint

What may come and what goes back is as at /invocations.
"""

from __future__ import annotations

import json
from typing import Literal

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from smallfirst.serving.exchange import Exchange
from smallfirst.serving.openai.errors import json_object
from smallfirst.serving.request_lifecycle import AppContext, RequestLifecycle
from smallfirst.serving.routes.invocations import InvocationHandler

PATHS = (
    "/endpoints/{name}/invocations",
    "/serving-endpoints/{name}/invocations",
    "/serving-endpoints/{name}/served-models/{entity}/invocations",
)


def addressed_routes(house: AppContext) -> list[Route]:
    """The routes; whoever is named in the path is asked as at /invocations."""
    return [Route(path, Addressed(house), methods=["POST"]) for path in PATHS]


class Addressed:
    """The ASGI application behind those paths."""

    def __init__(self, house: AppContext) -> None:
        self._house = house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing; the answer, or the reason why there is none, has been sent and recorded."""
        place = scope["path_params"]
        name = "/".join(place[part] for part in ("name", "entity") if part in place)
        await RequestLifecycle(self._house, _Named(self._house, name))(scope, receive, send)


class _Named:
    """The work of /invocations for a name that is given."""

    form: Literal["chat", "text"] = "chat"
    route = "invocations"

    def __init__(self, house: AppContext, name: str) -> None:
        self._work, self._name = InvocationHandler(house), name

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """As Invocations; a `model` in the body does not count."""
        await self._work.answer(exchange, json.dumps({**json_object(body), "model": self._name}).encode())
