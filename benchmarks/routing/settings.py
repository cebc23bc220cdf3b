"""Answers that a request's temperature changed: how many are marked as certified, and how many of these are wrong.

python -m benchmarks.routing.settings

A tiny model is trained to write a label (the toy rows of the tests, 60 epochs), and a linear model to choose it. Both
answer 300 requests at temperature 0 and 1.5 behind a certificate that accepts every draft.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.wrappers import CallableModel
from smallfirst.stats.intervals import wilson

TESTS = Path(__file__).parents[2] / "tests"
N, TEMPERATURES = 300, (0.0, 1.5)


class Right(CallableModel):
    """The large model: the right answer."""

    name, capabilities = "large", frozenset()

    def __init__(self, gold: dict[str, str]) -> None:
        self.gold = gold

    async def complete(self, request: Request) -> Completion:
        return Completion(text=self.gold[request.text], answered_by=self.name, latency_ms=1.0, cost_usd=1.0)


async def ask(small: Model, gold: dict[str, str]) -> None:
    from fixtures.certificates import certificate

    from smallfirst.routing.router import Router

    router, texts = Router(small, Right(gold), certificate(0.0)), list(gold)
    for temperature in TEMPERATURES:
        asked = [Request.ask(texts[i % len(texts)]) for i in range(N)]
        asked = [r.model_copy(update={"temperature": temperature, "seed": i}) for i, r in enumerate(asked)]
        found = [await router.complete(request) for request in asked]
        kept = [(a.text, gold[r.text]) for a, r in zip(found, asked, strict=True) if a.route and a.route.certified]
        wrong = wilson(sum(said != right for said, right in kept), len(kept)) if kept else None
        large = sum(answer.answered_by == "large" for answer in found)
        shown = f"{sum(a != b for a, b in kept)} wrong [{wrong.low:.3f}, {wrong.high:.3f}]" if wrong else "none"
        print(f"{type(small).__name__} at temperature {temperature}: {len(kept)} certified, {shown}; {large} large")
    await router.aclose()


def main() -> None:
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["SMALLFIRST_HOME"] = home = tempfile.mkdtemp()
    import torch
    import transformers
    from fixtures.training import fine_tune

    from smallfirst.models.label_model import LabelModel
    from smallfirst.models.linear.classifier import LinearClassifier
    from smallfirst.models.loading import load_model
    from smallfirst.models.manifest import MANIFEST, Manifest
    from smallfirst.tasks.answer import Answer
    from smallfirst.tasks.classify import Classify
    from smallfirst.training.config import TrainConfig
    from smallfirst.training.recipes.recipe import TaskRecipe
    from tests import conftest

    train, selection = (
        conftest._rows(name, frames) for name, frames in (("a", conftest.FRAMES[:4]), ("b", conftest.FRAMES[4:]))
    )
    gold = {example.text: example.answer for example in (*train.examples, *selection.examples)}
    base, tokenizer = Path(home) / "base", conftest._tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, initializer_range=0.1, **sizes,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    recipe = TaskRecipe(Answer(name="toy", max_answer_tokens=8), train, selection, None)
    settings = TrainConfig(duration="60ep", learning_rate=5e-3, batch_tokens=256)
    fine_tune(recipe, settings, base, Path(home) / "run")
    folder = next((Path(home) / "run").rglob(MANIFEST)).parent
    asyncio.run(ask(load_model(folder, name="toy@1"), gold))
    task = Classify(name="toy", labels=tuple(conftest.THINGS))
    linear = LinearClassifier.fit("words", train, task)
    asyncio.run(ask(LabelModel(linear, Manifest(kind="words", task=task, base="")), gold))


if __name__ == "__main__":
    main()
