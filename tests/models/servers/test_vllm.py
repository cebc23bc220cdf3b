"""vLLM as a program of its own: a stand-in that speaks HTTP on a Unix socket as `vllm serve` does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from fixtures.event_loop import in_loop
from fixtures.tiny_llama import has_ended, until

from smallfirst.errors import BadAnswer, ConfigError, MissingExtra, RequestRefused, Unavailable
from smallfirst.models.manifest import Manifest, base_sha256, write_manifest
from smallfirst.models.protocol import Capability, Model, Request, ResponseFormat
from smallfirst.models.servers.vllm import VllmConfig, VllmModel, adapter_name, find_vllm, serve_command
from smallfirst.paths import home
from smallfirst.pricing.prices import PriceBook
from smallfirst.tasks.answer import Answer

STAND_IN = f"""#!{sys.executable}
import http.server, json, os, pathlib, socketserver, subprocess, sys, threading

place = pathlib.Path(__file__).parent
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
own = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "helper": helper.pid, "pid": os.getpid()}}
(place / "started.json").write_text(json.dumps(own))
if (place / "broken").exists():
    helper.kill()
    print("ValueError: no kernel image is available", *("called from here",) * 5, sep="\\n")
    sys.exit((place / "broken").read_text() or None)
bodies = open(place / "bodies.jsonl", "a", buffering=1)


class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self):
        return "socket"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            self.send_response(401)
            self.end_headers()
            return
        bodies.write(json.dumps(body) + "\\n")
        self.send_response(200)
        self.end_headers()
        answers = (place / "answers.txt").read_text().splitlines()
        text = answers[min(len(answers), sum(1 for _ in open(place / "bodies.jsonl"))) - 1]
        for delta, reason in ((text[:3], None), (text[3:], "stop")):
            self.event({{"choices": [{{"index": 0, "delta": {{"content": delta}}, "finish_reason": reason}}]}})
        self.event({{"choices": [], "usage": {{"prompt_tokens": 5, "completion_tokens": 2}}}})
        self.wfile.write(b"data: [DONE]\\n\\n")

    def event(self, value):
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\\n\\n")


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


Server(sys.argv[sys.argv.index("--uds") + 1], Handler).serve_forever()
"""
SHORT = Request.ask("Hi")
YES_NO = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The stand-in; it answers one line of answers.txt a request, the last one again and again."""
    path = tmp_path / "bin" / "vllm"
    path.parent.mkdir()
    path.write_text(STAND_IN)
    path.chmod(0o755)
    (path.parent / "answers.txt").write_text("hello there\n")
    return path


@pytest.fixture
def config(tmp_path: Path, program: Path) -> VllmConfig:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").touch()
    (adapter / "adapter_config.json").write_text('{"r": 24}')
    (adapter / "adapter_model.safetensors").touch()
    return VllmConfig(model=base, program=program, start_timeout_s=60)


@pytest.fixture
def adapter(tmp_path: Path, config: VllmConfig) -> Path:
    return tmp_path / "adapter"


@pytest.fixture
def model(config: VllmConfig) -> Iterator[VllmModel]:
    model = VllmModel(config, PriceBook())
    yield model
    asyncio.run(model.aclose())


def started(program: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((program.parent / "started.json").read_text())
    return found


def bodies(program: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (program.parent / "bodies.jsonl").read_text().splitlines()]


@in_loop
async def test_answers_whole_and_in_pieces(model: VllmModel) -> None:
    await model.ready()
    whole = await model.complete(SHORT)
    assert isinstance(model, Model)
    assert Capability.READINESS in model.capabilities
    assert (whole.text, whole.answered_by) == ("hello there", "base")
    assert (whole.prompt_tokens, whole.completion_tokens) == (5, 2)
    assert whole.cost_usd > 0
    assert [chunk.text async for chunk in model.stream(SHORT)] == ["hel", "lo there", ""]


def test_server_is_started_for_us_alone(model: VllmModel, config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not yours")
    monkeypatch.setenv("PYTHONPATH", "not-yours")
    asyncio.run(model.complete(SHORT))
    assert config.program is not None
    own = started(config.program)
    given = dict(zip(own["arguments"], own["arguments"][1:], strict=False))
    assert own["arguments"][:2] == ["serve", str(config.model)]
    assert given["--served-model-name"] == "base"
    assert given["--max-lora-rank"] == "32"
    assert json.loads(given["--hf-overrides"]) == {"head_dtype": "float32"}
    assert Path(given["--uds"]).parent.stat().st_mode & 0o777 == 0o700
    assert {"--host", "--port"} & set(own["arguments"]) == set()
    environment = own["environment"]
    assert len(environment["VLLM_API_KEY"]) > 40
    assert environment["VLLM_API_KEY"] not in " ".join(own["arguments"])
    assert {"OPENAI_API_KEY", "PYTHONPATH"} & environment.keys() == set()
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"  # nobody else reaches the socket
    assert environment["VLLM_SERVER_DEV_MODE"] == "0"


@in_loop
async def test_tenants_prompts_are_salted_apart(model: VllmModel, program: Path) -> None:
    for tenant in ("ann", "ann", "bob"):
        await model.complete(SHORT.model_copy(update={"tenant": tenant, "tags": {"n": "9"}}))
    first, again, other = bodies(program)
    assert first["cache_salt"] == again["cache_salt"] != other["cache_salt"]
    assert "ann" not in first["cache_salt"]
    expected = {"model", "messages", "max_tokens", "temperature", "stream", "stream_options", "cache_salt"}
    assert set(first) == expected


@in_loop
async def test_adapter_is_loaded_into_the_running_process_and_into_the_next_one(
    config: VllmConfig, model: VllmModel, program: Path, adapter: Path
) -> None:
    adapted = VllmModel(config, PriceBook(), name="billing", adapter=adapter)
    await model.complete(SHORT)
    own, process = started(program), await model.server().supervisor.process()
    assert (await adapted.complete(SHORT)).answered_by == "billing"
    name = adapter_name(adapter, "billing")
    assert bodies(program)[1:] == [
        {"lora_name": name, "lora_path": str(adapter)},
        bodies(program)[0] | {"model": name, "cache_salt": bodies(program)[2]["cache_salt"]},
    ]
    assert started(program)["pid"] == own["pid"]
    await model.aclose()
    os.kill(own["pid"], signal.SIGKILL)
    await until(lambda: not process.is_alive)
    await adapted.complete(SHORT)
    assert started(program)["arguments"][-2:] == ["--lora-modules", f"{name}={adapter}"]
    assert [body.get("model") for body in bodies(program)] == ["base", None, name, name]  # loaded once
    await adapted.aclose()


@in_loop
async def test_format_is_checked_before_and_after(model: VllmModel, program: Path) -> None:
    (program.parent / "answers.txt").write_text('nonsense\n{"ok":true}\nnonsense\n')
    wanted, unusable = (
        SHORT.model_copy(update={"response_format": ResponseFormat(kind="json_schema", json_schema=schema)})
        for schema in (YES_NO, {"type": "string", "pattern": "(?=x)"})
    )
    assert (await model.complete(wanted)).text == '{"ok":true}'
    with pytest.raises(BadAnswer, match="base wrote what its schema forbids: 'nonsense'"):
        await model.complete(wanted)
    with pytest.raises(RequestRefused, match="look-around"):
        await model.complete(unusable)
    sent = bodies(program)
    assert len(sent) == 4
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": YES_NO}}
    assert all(body["response_format"] == schema for body in sent)
    assert sent[0]["cache_salt"] != sent[1]["cache_salt"]  # the second attempt reuses no cache


@in_loop
async def test_server_is_restarted_after_a_crash_and_ends_with_the_model(model: VllmModel, program: Path) -> None:
    await model.complete(SHORT)
    old, process = started(program), await model.server().supervisor.process()
    os.kill(old["pid"], signal.SIGKILL)
    await until(lambda: not process.is_alive)
    await until(lambda: has_ended(old["helper"]))  # or it would keep the GPU's memory
    assert (await model.complete(SHORT)).text == "hello there"
    new = started(program)
    assert new["pid"] != old["pid"]
    await model.aclose()
    await until(lambda: has_ended(new["pid"]) and has_ended(new["helper"]))


@in_loop
async def test_server_ends_with_its_parent(config: VllmConfig, program: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from smallfirst.models.protocol import Request\n"
        "from smallfirst.models.servers.vllm import VllmConfig, VllmModel\n"
        "from smallfirst.pricing.prices import PriceBook\n"
        "model = VllmModel(VllmConfig.model_validate_json(sys.argv[1]), PriceBook())\n"
        "asyncio.run(model.complete(Request.ask('Hi', max_tokens=1)))\n"
        "print('answered', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json()]
    root = str(Path(__file__).parents[3])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"answered\n"
        parent.kill()
    await until(lambda: has_ended(started(program)["pid"]) and has_ended(started(program)["helper"]))


def test_server_that_does_not_start_says_why(model: VllmModel, program: Path) -> None:
    (program.parent / "broken").write_text("RuntimeError: see root cause above")
    with pytest.raises(
        Unavailable, match=r"vLLM did not start for base: .* see root cause above / exit code 1"
    ) as caught:
        asyncio.run(model.complete(SHORT))
    log = home() / "logs" / "base.log"
    assert str(caught.value).endswith(f"; all that it said is in {log}")
    assert log.read_text().splitlines()[0] == "ValueError: no kernel image is available"
    assert log.stat().st_mode & 0o777 == 0o600


def test_server_that_ends_without_a_word_names_its_log_too(model: VllmModel, program: Path) -> None:
    program.write_text("#!/bin/sh\n")
    with pytest.raises(
        Unavailable, match=r"exit code 0\n  next: try it by hand: .*; all that it said is in .*/logs/base\.log"
    ):
        asyncio.run(model.complete(SHORT))


def test_without_vllm_it_is_said_how_to_install_it(config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_vllm() is None
    with pytest.raises(MissingExtra, match=r"no `vllm` is on PATH\n  next: install it in an environment of its own"):
        VllmModel(config.model_copy(update={"program": None}), PriceBook())
    with pytest.raises(MissingExtra, match="there is no program nowhere/vllm"):
        VllmModel(config.model_copy(update={"program": Path("nowhere/vllm")}), PriceBook())


def test_everything_wrong_with_the_folders_is_named(config: VllmConfig, adapter: Path) -> None:
    (config.model / "config.json").write_text('{"auto_map": {"AutoModel": "evil.py"}}')
    (config.model / "model.safetensors").unlink()
    (adapter / "adapter_config.json").write_text('{"r": 1024}')
    with pytest.raises(ConfigError) as caught:
        VllmModel(config, PriceBook(), adapter=adapter)
    for problem in ("code of its own", "no weights as safetensors", "rank is 1024"):
        assert problem in str(caught.value)


def test_an_adapter_of_another_base_is_refused(config: VllmConfig, adapter: Path) -> None:
    task, own = Answer(name="rules", max_answer_tokens=8), base_sha256(config.model)
    for sha256 in (own, ""):
        manifest = Manifest(kind="generative", task=task, base="b", base_sha256=sha256)
        write_manifest(adapter, manifest)
        VllmModel(config, PriceBook(), adapter=adapter)
    write_manifest(adapter, manifest.model_copy(update={"base_sha256": own}))
    (config.model / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ConfigError, match="this adapter was trained on b"):
        VllmModel(config, PriceBook(), adapter=adapter)


@pytest.mark.parametrize(
    "wrong",
    [
        {"options": ("--trust-remote-code",)},
        {"options": ("--host=0.0.0.0",)},
        {"options": ("--allowed-local-media-path=/",)},
        {"options": ("--max-lora-rank=8",)},
        {"url": "http://10.0.0.1:8000", "options": ("--dtype=bfloat16",)},
        {"url": "http://user:secret@10.0.0.1:8000"},
    ],
)
def test_settings_that_would_open_it_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=r"cannot be given|at url runs already|no user or password"):
        VllmConfig.model_validate({"model": "m", **wrong})


def test_options_come_last_so_that_they_count(config: VllmConfig) -> None:
    wanted = config.model_copy(update={"options": ("--dtype=float",), "lora_rank": 0, "head_dtype": "model"})
    command = serve_command(Path("vllm"), wanted, Path("s"), {})
    assert command[-1] == "--dtype=float"
    assert {"--enable-lora", "--hf-overrides"} & set(command) == set()
