"""The proxy's page: its tasks, and what is watched about those that were taken over."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import parse_qsl

from smallfirst.dashboard.page import page_files
from smallfirst.gateway.app import Handler
from smallfirst.gateway.http import GatewayRequest, GatewayResponse, json_response
from smallfirst.gateway.takeover.tasks import TakenOverTasks
from smallfirst.gateway.upstreams import Upstreams
from smallfirst.serving.ledger.ledger import Ledger


def page_routes(ledger: Ledger, local: TakenOverTasks) -> dict[tuple[str, str], Handler]:
    """Return the routes of the page, whose files are public, and of its figures."""

    async def session(_: GatewayRequest, __: Upstreams) -> GatewayResponse:
        return json_response({"at": "proxy", "role": "admin", "name": "", "tasks": list(local.tasks), "models": []})

    async def watched(request: GatewayRequest, _: Upstreams) -> GatewayResponse:
        from smallfirst.dashboard.watch import watch

        routers = {name: task.router for name, task in local.tasks.items()}
        query = dict(parse_qsl(request.query.decode("latin-1")))
        return json_response(await asyncio.to_thread(watch, ledger, routers, query))

    return {
        **{("GET", path): _file(content, headers) for path, content, headers in page_files()},
        ("GET", "/v1/dashboard/session"): session,
        ("GET", "/v1/dashboard/watch"): watched,
    }


def _file(content: bytes, headers: Mapping[str, str]) -> Handler:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def answer(_: GatewayRequest, __: Upstreams) -> GatewayResponse:
        return GatewayResponse(200, raw, content)

    return answer
