"""Fine-tuned models on a vLLM that runs already, joined at its address: their own prompts in tokens.

One vLLM serves every model of a base; adapters are loaded into it through its API before their first request. Its
prompt cache is salted by tenant. Label probabilities are those that PyTorch gives.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from scipy import special

from smallfirst.base.errors import BadAnswer, ConfigError, ModelError, Unavailable
from smallfirst.base.files import sha256
from smallfirst.models.label_model import LabelAnswers, LabelLogProbs
from smallfirst.models.local.tokenizer import encode_prompt, load_tokenizer
from smallfirst.models.manifest import MANIFEST, Manifest, read_manifest
from smallfirst.models.pricing import BusyTime, MachinePrice
from smallfirst.models.protocol import Bill
from smallfirst.models.remote.client import EndpointClient
from smallfirst.models.remote.config import EndpointConfig, VllmServer
from smallfirst.models.remote.http import ConnectionBroken, HttpResponse, HttpSession, error_text

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TIMEOUT_S = 300.0
"""Longest wait for the first byte of an answer, for the rest of it, and for an adapter to load."""
MAX_LABELS = 1024
"""Value to give to its `--max-logprobs`: labels whose probabilities one request may ask for."""
MAX_ANSWER_BYTES, SHOWN_BYTES = 4 * 1024 * 1024, 300
_TOKEN = "token_id:"
_SALT = os.urandom(32)
_IN_FLIGHT = Counter[str]()
"""Requests in flight by the address of a vLLM: each pays for its share of the machine."""


def served_name(weights: Path, name: str) -> str:
    """Return the name under which vLLM knows a folder's weights: `tickets-small-3-1f0c9a2b`, another for others.

    Whoever starts a vLLM of merged weights names them so, with `--served-model-name`.
    """
    digest = read_manifest(weights).weights_fingerprint if (weights / MANIFEST).is_file() else ""
    file = weights / ADAPTER_WEIGHTS
    digest = digest or (sha256(file) if file.is_file() else "")
    return "-".join(filter(None, (re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100], digest[:8])))


def cache_salt(tenant: str) -> str:
    """Return what keeps the cached prompts of a tenant apart from those of others; new in each process."""
    return hmac.new(_SALT, tenant.encode(), hashlib.sha256).hexdigest()


class VllmRoute:
    """The way of one fine-tuned model to its vLLM."""

    def __init__(self, server: VllmServer, *, name: str, weights: Path, adapter: bool) -> None:
        """Ask nothing yet; `weights` is the folder of an adapter or of merged weights. Raise ConfigError."""
        if adapter and not (weights / ADAPTER_WEIGHTS).is_file():
            raise ConfigError(f"{weights} lacks {ADAPTER_WEIGHTS}")
        self.name, self.served_name = name, served_name(weights, name)
        self._url, self._adapter = server.url, weights.absolute() if adapter else None
        self._is_loaded = False
        config = EndpointConfig(
            base_url=f"{server.url}/v1",
            model=self.served_name,
            api_key_env=server.api_key_env,
            timeout_s=TIMEOUT_S,
            max_retries=1,
            max_concurrency=server.slots,
        )
        key = os.environ.get(server.api_key_env, "").strip()
        self._client = EndpointClient(config, key)

    @asynccontextmanager
    async def post(self, tenant: str, body: Mapping[str, Any]) -> AsyncIterator[tuple[HttpResponse, BusyTime]]:
        """Wait for a slot and the adapter; yield the response to a completion of tokens, its body unread, and the time.

        Raise Unavailable, ModelError.
        """
        fixed = {"model": self.served_name, "return_tokens_as_token_ids": True, "cache_salt": cache_salt(tenant)}
        content = json.dumps(fixed | dict(body)).encode()
        async with AsyncExitStack() as stack:
            session, _ = await stack.enter_async_context(self._client.slot())
            _IN_FLIGHT[self._url] += 1
            stack.callback(_IN_FLIGHT.subtract, [self._url])
            busy = BusyTime(1 / _IN_FLIGHT[self._url])
            await self._load_adapter(session)
            try:
                response, _ = await stack.enter_async_context(self._client.post(session, "/completions", content))
            except ModelError as error:
                if self._adapter is None or "does not exist" not in str(error):
                    raise
                self._is_loaded = False  # it was started anew, and has lost what was loaded
                await self._load_adapter(session)
                response, _ = await stack.enter_async_context(self._client.post(session, "/completions", content))
            yield response, busy

    async def ready(self) -> None:
        """Raise ModelError unless the server answers and has the adapter."""
        async with self.post("readiness", {"prompt": [0], "max_tokens": 1, "temperature": 0}) as (response, _):
            await response.read()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _load_adapter(self, session: HttpSession) -> None:
        if self._adapter is None or self._is_loaded:
            return
        body = json.dumps({"lora_name": self.served_name, "lora_path": str(self._adapter)}).encode()
        try:
            response = await session.post("/load_lora_adapter", body)
            answer = (await response.read_start(SHOWN_BYTES)).decode(errors="replace")
        except ConnectionBroken as error:
            message = f"{self.name}: the vLLM at {self._url} does not answer: {error_text(error)}"
            raise Unavailable(message, hint="see if it is up") from None
        if response.status != 200 and "already been loaded" not in answer:
            raise Unavailable(
                f"{self.name}: vLLM did not load its adapter (HTTP {response.status}): {answer}",
                hint=f"let it read {self._adapter}, and set VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 where nobody else "
                f"reaches it; or start it with --lora-modules {self.served_name}={self._adapter}",
            )
        self._is_loaded = True


class VllmLabelModel(LabelAnswers):
    """A model that scores one token a label: one token is generated, and the probabilities of all label tokens read."""

    def __init__(
        self, route: VllmRoute, folder: Path, manifest: Manifest, *, name: str = "", price: MachinePrice | None = None
    ) -> None:
        """Read the tokenizer in `folder`. Raise ConfigError if there are too many labels."""
        super().__init__(manifest, name=name, price=price)
        if len(manifest.label_tokens) > MAX_LABELS:
            raise ConfigError(f"{folder}: vLLM gives the probabilities of at most {MAX_LABELS} labels")
        self.route, self._tokenizer = route, load_tokenizer(folder)

    async def log_probabilities(self, text: str, *, tenant: str = "", bill: Bill | None = None) -> LabelLogProbs:
        labels, limit = list(self.manifest.label_tokens), self.manifest.max_tokens
        ids = encode_prompt(self._tokenizer, self.manifest.task.prompt(text), limit)
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, "logprob_token_ids": labels}
        async with self.route.post(tenant, body) as (response, busy):
            content = await response.read(max_bytes=MAX_ANSWER_BYTES)
            return LabelLogProbs(self._renormalised(content), len(ids), busy.seconds)

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
        logs: list[float] = special.log_softmax(values).tolist()
        return logs

    async def ready(self) -> None:
        await self.route.ready()

    async def aclose(self) -> None:
        await self.route.aclose()
