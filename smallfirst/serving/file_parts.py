"""Documents in a chat, as OpenAI writes them: `{type: file, file: {filename, file_data}}`, read as their text."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from smallfirst.base.errors import MissingExtra
from smallfirst.data.sources.documents import DocumentReader
from smallfirst.serving.errors import ApiError
from smallfirst.serving.wire import parse_json_object

_READERS = ThreadPoolExecutor(2, "documents")
"""Each document has a process of its own, of up to half a gigabyte; further ones wait."""


async def with_texts(body: bytes) -> bytes:
    """Return the body of a chat with the texts of its documents in their place. Raise ApiError 400 naming one at fault.

    A document that has no text, such as a scanned one, is refused: nothing is guessed.
    """
    return await asyncio.get_running_loop().run_in_executor(_READERS, _with_texts, body)


def _with_texts(body: bytes) -> bytes:
    values = parse_json_object(body)
    turns = values.get("messages")
    for n, turn in enumerate(turns if isinstance(turns, list) else ()):
        parts = turn.get("content") if isinstance(turn, dict) else None
        for m, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, dict) and part.get("type") == "file":
                text = _text(part.pop("file", None), f"messages[{n}].content[{m}]")
                part.update(type="text", text=text)
    return json.dumps(values).encode()


def _text(file: Any, place: str) -> str:
    file = file if isinstance(file, dict) else {}
    name, data = file.get("filename"), file.get("file_data")
    if not isinstance(name, str) or not isinstance(data, str):
        rule = "a file has `filename` and `file_data` in base64; ids of files are not accepted"
        raise ApiError(400, f"{place}: {rule}.", param=place, code="invalid_file")
    try:
        raw = base64.b64decode(data.partition(",")[2] if data.startswith("data:") else data, validate=True)
        with DocumentReader() as reader:
            found = reader.read(name[:200], raw)
    except binascii.Error:
        raise ApiError(400, f"{place}: file_data is no base64.", param=place, code="invalid_file") from None
    except MissingExtra as error:
        raise ApiError(400, f"{place}: {error}", param=place, code="invalid_file") from None
    if found.rule:
        raise ApiError(400, f"{place}: {name[:200]}: {found.rule}.", param=place, code="unreadable_document")
    return found.text
