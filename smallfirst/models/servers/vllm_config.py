"""Settings of a vLLM that runs already, joined at its address."""

from __future__ import annotations

from typing import Annotated

import pydantic
from pydantic import Field

from smallfirst.models.remote.config import BaseUrl
from smallfirst.records import Record


class VllmServer(Record):
    """One vLLM, which serves every model over the same base."""

    url: BaseUrl
    """Its address, such as `http://gpu-1:8000`."""
    api_key_env: str = "VLLM_API_KEY"
    """Environment variable that holds its key. The key itself is never in a file."""
    slots: Annotated[int, Field(ge=1)] = 64
    """Requests in flight at most."""
    max_waiting: Annotated[int, Field(ge=1)] = 256
    """Requests that may wait inside it, those of its other clients included; beyond that, requests are refused."""
    lora_rank: Annotated[int, Field(ge=0, le=512)] = 32
    """Largest rank of the adapters that may be loaded, its `--max-lora-rank`."""

    @pydantic.field_validator("url")
    @classmethod
    def _is_the_root(cls, value: str) -> str:
        return value.removesuffix("/v1")
