"""Settings of vLLM, started here from an environment of its own or joined at its address."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from smallfirst.models.remote.config import BaseUrl
from smallfirst.records import Record

_NETWORK_OPTIONS = ("--host", "--port", "--uds", "--api-key", "--allow", "--root-path", "--middleware", "--headless")
_MODEL_OPTIONS = ("--served-model-name", "--enable-lora", "--lora-modules", "--chat-template", "--trust-remote-code")
_RESERVED_OPTIONS = (*_NETWORK_OPTIONS, *_MODEL_OPTIONS, "--config", "--max-loras", "--max-lora-rank")
"""Options that would open the server or run foreign code, and those that are set here."""


class VllmServer(Record):
    """One vLLM, which serves every model over the same base."""

    url: BaseUrl | None = None
    """Address of a vLLM that runs already, such as `http://gpu-1:8000`; left out, one is started here."""
    api_key_env: str = "VLLM_API_KEY"
    """Environment variable that holds the key of the vLLM at `url`. The key itself is never in a file."""
    program: Path | None = None
    """The `vllm` of its environment (`…/bin/vllm`), by default the one on PATH; or that environment's `python`, for
    builds whose command does not work."""
    context_tokens: Annotated[int, Field(ge=64)] | None = None
    """Longest prompt with its answer; by default the model's own."""
    slots: Annotated[int, Field(ge=1)] = 64
    """Requests in flight at most."""
    max_waiting: Annotated[int, Field(ge=1)] = 256
    """Requests that may wait inside a vLLM at `url`, those of its other clients included; beyond that, requests are
    refused."""
    lora_rank: Annotated[int, Field(ge=0, le=512)] = 32
    """Largest rank of the adapters that may be loaded while it runs; 0: no adapters."""
    loras_at_once: Annotated[int, Field(ge=1)] = 8
    """Adapters that may answer in the same batch; further ones are loaded in turn."""
    head_dtype: Literal["float32", "model"] = "float32"
    """Precision of the last layer. The model's own rounds bf16 logits to steps of 1/16, and so moves probabilities by
    up to 0.02; exact ones cost the memory of that layer in float32."""
    options: tuple[str, ...] = ()
    """Further options of `vllm serve`, such as `--dtype=bfloat16`."""

    @pydantic.field_validator("url")
    @classmethod
    def _is_the_root(cls, value: str | None) -> str | None:
        return value and value.removesuffix("/v1")

    @pydantic.model_validator(mode="after")
    def _is_started_or_joined(self) -> VllmServer:
        if self.url and (self.program or self.options or self.context_tokens):
            raise ValueError("program, options and context_tokens start a vLLM, and the one at url runs already")
        return self

    @pydantic.field_validator("options")
    @classmethod
    def _check_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [option for option in value if option.startswith(_RESERVED_OPTIONS)]:
            raise ValueError(
                f"{', '.join(wrong)} cannot be given: they are set here, open the server or run foreign code"
            )
        return value
