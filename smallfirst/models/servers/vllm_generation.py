"""Fine-tuned models that generate, on vLLM: prompts, formats and calibration are those of the model in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from smallfirst.base.errors import BadAnswer, Unavailable
from smallfirst.models.generation.generator import GeneratedSequence, GenerationRequest, GenerationResult
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.local.tokenizer import end_of_turn_token, import_transformers, load_pretrained
from smallfirst.models.manifest import Manifest
from smallfirst.models.pricing import MachinePrice
from smallfirst.models.servers.vllm import VllmRoute

CutOff = Callable[[Any], None]
SHOWN_CHARACTERS = 300


class VllmScheduler:
    """Generates answers on a vLLM, in the place of a GenerationWorker."""

    def __init__(self, route: VllmRoute, tokenizer: Any, *, context_tokens: int | None, end: int | None = None) -> None:
        """Generate until `end`, by default the tokenizer's."""
        self._end = tokenizer.eos_token_id if end is None else end
        self.route, self.tokenizer, self.context_tokens, self.closed = route, tokenizer, context_tokens, False

    async def generate(self, request: GenerationRequest, cut_off: CutOff | None = None) -> GenerationResult:
        """Return the whole answer. Raise ModelError."""
        async with aclosing(self.stream(request, cut_off)) as events:
            return [event async for event in events if isinstance(event, GenerationResult)][-1]

    async def stream(
        self, request: GenerationRequest, cut_off: CutOff | None = None
    ) -> AsyncGenerator[str | GenerationResult]:
        """Yield the answer's deltas, then the whole. Closed early, vLLM stops generating it."""
        answer = _Answer(request, self.tokenizer, self._end)
        async with self.route.post(request.tenant, self._body(request)) as (response, busy):
            try:
                async for data in response.events():
                    if data != "[DONE]" and (delta := answer.take(data)):
                        yield delta
                if not answer.finished:
                    raise Unavailable(f"{self.route.name}: the answer broke off", hint="retry")
                cut_off = None
            finally:
                answer.busy_s = busy.seconds
                if cut_off is not None and answer.ids:
                    cut_off(answer)
        yield answer.result()

    async def aclose(self) -> None:
        self.closed = True
        await self.route.aclose()

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": list(request.ids),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "logprobs": 0,
            "stream": True,
            "return_token_ids": True,
        }
        if request.grammar is not None:
            return body | {"structured_outputs": {"grammar": request.grammar.source}}
        return body | {"stop": list(request.stop) or None, "stop_token_ids": None if self._end is None else [self._end]}


class _Answer(GeneratedSequence):
    """An answer as far as it has arrived; vLLM follows the grammar."""

    def __init__(self, request: GenerationRequest, tokenizer: Any, end: int | None) -> None:
        stop = () if request.grammar else request.stop
        super().__init__(request._replace(grammar=None, stop=stop, temperature=0.0), tokenizer, streams=True)
        self._ends = {end, tokenizer.eos_token_id}

    def take(self, data: str) -> str:
        """Return what an event adds to the text. Raise BadAnswer if it cannot be read, Unavailable for an error."""
        try:
            body = json.loads(data)
            if "error" in body:
                raise Unavailable(f"vLLM broke off: {str(body['error'])[:SHOWN_CHARACTERS]}")
            for choice in body["choices"]:
                self._extend(choice)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise BadAnswer(f"vLLM sent what is no part of an answer ({type(error).__name__})") from None
        self._follow_text()
        return self.delta()

    def _extend(self, choice: dict[str, Any]) -> None:
        ids, logprobs = list(choice["token_ids"] or ()), choice["logprobs"] or {}
        self.log_probabilities += map(float, logprobs.get("token_logprobs") or ())
        if reason := choice["finish_reason"]:
            self.finished, self.finish_reason = True, "length" if reason == "length" else "stop"
            if reason == "stop" and ids and ids[-1] in self._ends:
                ids.pop()  # its probability counts, and it is no part of the text
        self.ids += ids


class VllmGenerativeModel(GenerativeModel):
    """A GenerativeModel whose answers vLLM generates."""

    async def ready(self) -> None:
        await self.worker.route.ready()  # type: ignore[attr-defined]


def generative_model(
    route: VllmRoute, tokenizer: Path, manifest: Manifest, *, base: Path, name: str, price: MachinePrice
) -> GenerativeModel:
    """Return the model of a folder that training wrote, with the tokenizer in the folder `tokenizer`.

    Prompts longer than the base was made for are refused here where its folder is. Raise MissingExtra.
    """
    transformers = import_transformers("Serving through vLLM", weights=False)
    loaded = load_pretrained(transformers.AutoTokenizer, tokenizer)
    end = end_of_turn_token(loaded) if manifest.kind == "chat" else None
    scheduler: Any = VllmScheduler(route, loaded, context_tokens=_context_tokens(base), end=end)
    return VllmGenerativeModel.fine_tuned(scheduler, manifest, name=name, price=price)


def _context_tokens(base: Path) -> int | None:
    """Return the longest prompt with its answer that a base was made for; None if its folder is not here."""
    try:
        found = json.loads((base / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None
