"""Fine-tuned models on vLLM: their own prompts in tokens, and label probabilities as PyTorch gives them.

A model that is an adapter shares the vLLM of its base with all others; it is loaded there before its first request.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from smallfirst.errors import BadAnswer, ConfigError, ModelError, Unavailable
from smallfirst.models.label_model import LabelAnswers, LabelLogProbs, log_softmax
from smallfirst.models.local.tokenizer import encode_prompt, load_tokenizer
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Request
from smallfirst.models.remote.client import EndpointClient
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.http import HttpResponse
from smallfirst.models.remote.model import open_session
from smallfirst.models.remote.responses import ResponseParser
from smallfirst.models.response_format import FREE_TEXT
from smallfirst.models.servers.managed_server import Lease, ManagedServer, release
from smallfirst.models.servers.vllm import (
    MOST_LABELS,
    VllmConfig,
    adapter_name,
    check_adapter,
    shared_server,
)
from smallfirst.models.usage import Attempt
from smallfirst.pricing.machine import MachinePrice

MAX_ANSWER_BYTES = 4 * 1024 * 1024
_TOKEN = "token_id:"


def token_of(name: str) -> int:
    """Return the token that vLLM names `token_id:17`. Raise ValueError for another name."""
    return int(name.removeprefix(_TOKEN))


class VllmRoute:
    """The way of one fine-tuned model to the vLLM of its base."""

    def __init__(self, config: VllmConfig, *, name: str, adapter: Path | None = None) -> None:
        """Ask nothing yet. Raise ConfigError for an adapter that cannot be loaded."""
        if adapter is not None:
            check_adapter(config, adapter)
        self.name, self._config, self._adapter = name, config, adapter
        # Whoever starts the vLLM names merged weights so, with `--served-model-name`.
        self.served_name = adapter_name(adapter or config.model, name)
        self._server: ManagedServer | None = None
        self._client: tuple[Any, EndpointClient] | None = None

    @asynccontextmanager
    async def lease(self, request: Request) -> AsyncIterator[Lease]:
        """Wait for a slot, for the server and for the adapter. Raise Unavailable, ModelError."""
        async with self._shared().lease(request, self.served_name) as lease:
            yield lease

    @asynccontextmanager
    async def post(self, lease: Lease, request: Request, body: Mapping[str, Any]) -> AsyncIterator[HttpResponse]:
        """Yield the response to a completion of tokens, its body unread. Raise ModelError."""
        salt = self._shared().backend.extra_body(request, FREE_TEXT, lease.slot, False)
        whole = {"model": self.served_name, "return_tokens_as_token_ids": True, **salt, **body}
        async with AsyncExitStack() as stack:
            try:
                response = await stack.enter_async_context(self._sent(lease, "/completions", whole))
            except ModelError as error:
                if self._adapter is None or "does not exist" not in str(error):
                    raise
                lease.process.adapters.discard(self.served_name)  # it was started anew, and has lost what was loaded
                await self._shared().load_adapter(lease.process, self.served_name)
                response = await stack.enter_async_context(self._sent(lease, "/completions", whole))
            yield response

    async def ready(self) -> None:
        """Raise ModelError unless the server answers and has the adapter."""
        async with self.lease(Request.ask("ready")) as lease:
            body = {"prompt": [0], "max_tokens": 1, "temperature": 0}
            async with self.post(lease, Request.ask("ready"), body) as response:
                await response.read()

    async def aclose(self) -> None:
        server, self._server, client, self._client = self._server, None, self._client, None
        if client is not None:
            await client[1].aclose()
        if server is not None:
            await release(server)

    def _shared(self) -> ManagedServer:
        if self._server is None:
            self._server = shared_server(self._config, {self.served_name: self._adapter} if self._adapter else {})
        return self._server

    @asynccontextmanager
    async def _sent(self, lease: Lease, path: str, body: Mapping[str, Any]) -> AsyncIterator[HttpResponse]:
        client = self._client_of(lease.process)
        async with client.slot() as (session, _):
            try:
                async with client.post(session, path, json.dumps(body).encode()) as (response, _attempt):
                    yield response
            except Unavailable as error:
                raise self._shared().supervisor.crash_error(lease.process) or error from None

    def _client_of(self, process: Any) -> EndpointClient:
        if self._client is None or self._client[0] is not process:
            config = EndpointConfig(
                base_url=f"{process.base_url}/v1",
                model=self.served_name,
                api_key_env=self._config.api_key_env,
                timeout_s=self._config.timeout_s,
                max_retries=1,
                max_concurrency=self._config.slots,
            )
            connect = partial(open_session, config, process.key, unix_socket=process.unix_socket)
            parser = ResponseParser(config.base_url, config.model, config.api_key_env, process.key)
            attempt = partial(Attempt, config.base_url, config.model)
            self._client = process, EndpointClient(config, parser, open_session=connect, new_attempt=attempt)
        return self._client[1]


class VllmLabelModel(LabelAnswers):
    """A model that scores one token a label: one token is generated, and the probabilities of all label tokens read."""

    def __init__(
        self, route: VllmRoute, folder: Path, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> None:
        """Read the tokenizer in `folder`. Raise ConfigError if there are too many labels."""
        super().__init__(manifest, name=name, price=price)
        if len(manifest.label_tokens) > MOST_LABELS:
            raise ConfigError(f"{folder}: vLLM gives the probabilities of at most {MOST_LABELS} labels")
        self.route, self._tokenizer = route, load_tokenizer(folder)

    async def log_probabilities(self, text: str, *, tenant: str = "") -> LabelLogProbs:
        labels, limit = list(self.manifest.label_tokens), self.manifest.max_tokens
        ids = encode_prompt(self._tokenizer, self.manifest.task.prompt(text), limit)
        request = Request.ask(text).model_copy(update={"tenant": tenant})
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, "logprob_token_ids": labels}
        async with self.route.lease(request) as lease:
            async with self.route.post(lease, request, body) as response:
                content = await response.read(max_bytes=MAX_ANSWER_BYTES)
            return LabelLogProbs(self._renormalised(content), len(ids), lease.busy_s)

    def _renormalised(self, content: bytes) -> list[float]:
        """Return the log-probabilities among the label tokens (labels,), in nats. Raise BadAnswer if one is missing."""
        try:
            found = json.loads(content)["choices"][0]["logprobs"]["top_logprobs"][0]
            values = [float(found[f"{_TOKEN}{token}"]) for token in self.manifest.label_tokens]
        except (ValueError, KeyError, IndexError, TypeError):
            n_labels = len(self.manifest.label_tokens)
            raise BadAnswer(
                f"{self.name}: vLLM did not return the probability of every label token",
                hint=f"it must know logprob_token_ids, and be started with --max-logprobs {n_labels} or more",
            ) from None
        logs: list[float] = log_softmax(values, 1.0).tolist()
        return logs

    async def ready(self) -> None:
        await self.route.ready()

    async def aclose(self) -> None:
        await self.route.aclose()
