"""Fine-tuned label models on vLLM: the probabilities of PyTorch, and an adapter that is there when it is asked."""

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.vllm_server import ScriptedVllm, adapter_folder, scored_by, top_logprobs

from smallfirst.base.errors import BadAnswer, ConfigError, Unavailable
from smallfirst.models.label_model import LabelModel
from smallfirst.models.loading import load_model
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.protocol import Model, Request, label_probability_model
from smallfirst.models.remote.config import VllmServer

TEXTS = ("where is my card", "my card was stolen and I want another one", "")


@pytest.fixture
def adapter(tmp_path: Path, tiny_folder: Path, scorer: LabelScorer) -> Path:
    manifest = scorer.manifest.model_copy(update={"weights_fingerprint": "0123456789abcdef", "temperature": 1.5})
    return adapter_folder(tmp_path / "tickets", tiny_folder, manifest)


@pytest.fixture
def computing(vllm: ScriptedVllm, scorer: LabelScorer) -> ScriptedVllm:
    vllm.complete = scored_by(scorer.model)
    return vllm


def loaded(folder: Path, vllm: ScriptedVllm) -> Model:
    return load_model(folder, name="tickets-small@3", vllm=VllmServer(url=f"{vllm.url}/v1"))


async def test_probabilities_are_those_of_pytorch(computing: ScriptedVllm, adapter: Path, scorer: LabelScorer) -> None:
    model, reference = loaded(adapter, computing), LabelModel(scorer, scorer.manifest)
    temperature = 1.5
    scoring = label_probability_model(model)
    for text, found, expected in zip(TEXTS, await scoring.probabilities(TEXTS), scorer.score(TEXTS), strict=True):
        logs = torch.tensor(expected.log_probabilities) / temperature
        assert found.probabilities == pytest.approx(logs.softmax(-1).tolist(), abs=1e-5), text
        assert found.n_tokens == expected.n_tokens
    answer = await model.complete(Request.ask(TEXTS[0]))
    assert (answer.text, answer.completion_tokens) == ((await reference.complete(Request.ask(TEXTS[0]))).text, 1)
    assert answer.cost_usd > 0
    await model.ready()
    await model.aclose()
    await reference.aclose()


async def test_adapter_is_loaded_once_and_again_after_a_restart(computing: ScriptedVllm, adapter: Path) -> None:
    model = loaded(adapter, computing)
    await asyncio.gather(*(model.complete(Request.ask(text)) for text in TEXTS))
    name = "tickets-small-3-01234567"  # task, version and weights
    assert computing.adapters == {name: str(adapter)}
    computing.stop()
    computing.start()  # sooner than anybody looks
    await model.complete(Request.ask(TEXTS[0]))
    assert computing.adapters == {name: str(adapter)}
    assert {body["model"] for body in computing.bodies} == {name}
    await model.aclose()


async def test_tenants_prompts_are_salted_apart(computing: ScriptedVllm, adapter: Path) -> None:
    model = loaded(adapter, computing)
    for tenant in ("ann", "ann", "bob"):
        await model.complete(Request.ask(TEXTS[0]).model_copy(update={"tenant": tenant}))
    first, again, other = (body["cache_salt"] for body in computing.bodies)
    assert first == again != other
    await model.aclose()


@pytest.mark.parametrize("answer", [{}, {"choices": []}, top_logprobs({5: -0.1}), [1], top_logprobs({5: math.nan})])
async def test_answer_without_every_label_is_refused(vllm: ScriptedVllm, adapter: Path, answer: Any) -> None:
    vllm.complete = lambda _: answer
    model = loaded(adapter, vllm)
    with pytest.raises(BadAnswer, match="did not return the probability of every label token"):
        await model.complete(Request.ask("x"))
    await model.aclose()


async def test_adapter_that_is_there_is_taken_and_one_that_cannot_be_loaded_says_what_to_do(
    computing: ScriptedVllm, adapter: Path
) -> None:
    computing.adapters["tickets-small-3-01234567"] = "loaded by another gateway"
    model = loaded(adapter, computing)
    await model.complete(Request.ask(TEXTS[0]))
    await model.aclose()
    computing.stop()
    model = loaded(adapter, computing)
    with pytest.raises(Unavailable, match=f"the vLLM at {computing.url} does not answer"):
        await model.complete(Request.ask(TEXTS[0]))
    computing.start()
    computing.loads_adapters = False
    with pytest.raises(Unavailable, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1") as caught:
        await model.complete(Request.ask(TEXTS[0]))
    assert f"--lora-modules tickets-small-3-01234567={adapter}" in str(caught.value)
    await model.aclose()


def test_an_adapter_without_weights_is_refused_before_it_is_asked(adapter: Path, vllm: ScriptedVllm) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lacks adapter_model\.safetensors"):
        loaded(adapter, vllm)
