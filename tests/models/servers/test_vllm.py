"""What a vLLM at an address is asked for by, and what is refused before it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pydantic
import pytest

from smallfirst.models.protocol import Request
from smallfirst.models.response_format import FREE_TEXT
from smallfirst.models.servers.slots import Slot
from smallfirst.models.servers.vllm import VllmConfig, adapter_name, context_of, vllm_backend

CONFIG = VllmConfig(url="http://gpu-1:8000/v1", model=Path("weights/base"))


def test_weights_are_named_by_task_version_and_content(tmp_path: Path) -> None:
    assert CONFIG.url == "http://gpu-1:8000"
    assert adapter_name(tmp_path, "tickets small@3") == "tickets-small-3"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    named = adapter_name(tmp_path, "tickets small@3")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"others")
    assert named.startswith("tickets-small-3-")
    assert named != adapter_name(tmp_path, "tickets small@3")


def test_the_longest_prompt_is_read_where_the_base_is_here(tmp_path: Path) -> None:
    assert context_of(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    assert context_of(tmp_path) == 2048


def test_a_second_attempt_reuses_no_cache_of_the_tenant() -> None:
    backend, request = vllm_backend(CONFIG), Request.ask("Hi").model_copy(update={"tenant": "ann"})
    slot = Slot(0, may_reuse_cache=True)
    again = [backend.extra_body(request, FREE_TEXT, slot, False)["cache_salt"] for _ in range(2)]
    assert again[0] == again[1]
    assert backend.extra_body(request, FREE_TEXT, slot, True)["cache_salt"] not in again
    assert "ann" not in again[0]


@pytest.mark.parametrize(
    "wrong", [{}, {"url": "http://user:secret@10.0.0.1:8000"}, {"url": "http://gpu-1:8000", "program": "vllm"}]
)
def test_settings_that_name_no_address_or_start_one_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"url|no user or password|program"):
        VllmConfig.model_validate({"model": "m", **wrong})
