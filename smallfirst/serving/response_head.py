"""Heads of responses: header values that every server can write, and a head that waits until the answer is recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_VALUE = 900
"""Characters of a header's value; what is longer ends in `...`, and is whole in the body."""
_CUT, _SAFE = "...", "/@:+ ,=();"
_HALF_ESCAPE = re.compile("%.?$")
_PLAIN = re.compile(r"(?! )[A-Za-z0-9_.~/@:+ ,=();-]{1,900}(?<! )")
"""What stands as it is, without looking at each character."""


class HeadNotSent(Exception):
    """The head of a response cannot be sent, so nothing of it was."""


def header_value(text: str) -> str:
    """Return any text as the value of a header: ASCII without control characters or white space at its ends.

    `urllib.parse.unquote` gives the text back, up to white space at its ends and to MAX_VALUE.
    """
    if _PLAIN.fullmatch(text):
        return text
    whole = quote(text, safe=_SAFE, errors="replace").strip(" ")
    if len(whole) <= MAX_VALUE:
        return whole
    kept = _HALF_ESCAPE.sub("", whole[: MAX_VALUE - len(_CUT)])
    return quote(unquote(kept, errors="ignore"), safe=_SAFE) + _CUT


def raw_headers(values: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI takes them, each value by `header_value`."""
    return [(name.encode("ascii"), header_value(text).encode("ascii")) for name, text in values.items()]


class HeldHead:
    """ASGI middleware that keeps a head until its body begins, as ASGI asks of servers, and checks it at once.

    So an answer is recorded when its head is known to be good and before its client has anything of it; until then
    another head takes its place. A head that no server could write raises h11's LocalProtocolError from `send`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: Message | None = None

        async def hold(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                h11.Response(status_code=message["status"], headers=list(message["headers"]))
                held = message
                return
            if held is not None:
                head, held = held, None
                await send(head)
            await send(message)

        await self._app(scope, receive, hold)
