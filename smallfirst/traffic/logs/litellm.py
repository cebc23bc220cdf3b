"""LiteLLM: rows of its spend logs (`LiteLLM_SpendLogs`), and payloads that its loggers write to files and buckets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from smallfirst.errors import Problem
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.logs.entry import Entry, LogReader, exchange_of
from smallfirst.traffic.logs.records import LogRecord
from smallfirst.traffic.logs.shapes import as_object, first, parsed

_ROUTES = {"responses": "/v1/responses", "embedding": "/v1/embeddings", "text_completion": "/v1/completions"}


class LiteLLMReader(LogReader):
    """Reads rows whose proxy was told to store prompts; others have a bill but no text."""

    title = "LiteLLM's spend logs"

    def recognizes(self, values: dict[str, Any]) -> bool:
        return "call_type" in values and bool({"spend", "response_cost"} & values.keys())

    def read(self, record: LogRecord) -> Iterable[Exchange | Problem]:
        values = record.values
        asked = as_object(values.get("proxy_server_request"))
        asked = as_object(asked.get("body")) or asked
        turns = parsed(values.get("messages"))
        request = {**as_object(values.get("model_parameters")), "messages": turns} if turns else asked
        if not request or not (answer := parsed(values.get("response"))):
            if values.get("status") != "failure":
                return [
                    Problem(record.path, record.line, "no text: LiteLLM was not told to store_prompts_in_spend_logs")
                ]
            answer = None
        call = str(values.get("call_type")).removeprefix("a")
        information = as_object(values.get("metadata"))
        usage = as_object(information.get("usage_object"))
        entry = Entry(
            {**asked, **request},
            answer,
            id=first(values, "litellm_call_id", "request_id", "id"),
            at=values.get("startTime"),
            end=values.get("endTime"),
            first_token_at=values.get("completionStartTime") if values.get("stream") else None,
            route=_ROUTES.get(call, ""),
            model=first(values, "model_group", "model"),
            answered_by=as_object(answer).get("model") or values.get("model"),
            prompt_tokens=values.get("prompt_tokens"),
            cached_tokens=as_object(usage.get("prompt_tokens_details")).get("cached_tokens"),
            completion_tokens=values.get("completion_tokens"),
            cost_usd=first(values, "response_cost", "spend"),
            tenant=first(values, "team_id", "end_user", "user"),
            error=first(information, "error_information") or values.get("error_str") or "failed",
        )
        return [exchange_of(entry, record)]
