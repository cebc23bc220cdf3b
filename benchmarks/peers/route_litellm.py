"""LiteLLM's side of benchmarks/routing/quality.py, run by the interpreter of an environment that has litellm.

    python -m benchmarks.peers.route_litellm PROMPTS.jsonl

Both offline classifiers of its complexity router, with default settings: the weighted rules (`heuristic`, a score and a tier)
and the success table (`heuristic_v2`, the probability that a model of the lowest tier succeeds). Prints one JSON
object: the version, and for each classifier a score per prompt (higher: rather the strong model), the prompts that its
own settings send beyond the lowest tier, and milliseconds of processor time a prompt. Nothing is fetched and no model
is asked.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from litellm import Router
from litellm.router_strategy.adaptive_router.classifier import classify_prompt
from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter
from litellm.router_strategy.complexity_router.tier_predictor import TierSuccessPredictor, resolve_tier_artifact


def rules(prompt: str, router: ComplexityRouter) -> tuple[float, bool]:
    tier, score, _ = router.classify(prompt)
    return score, tier.value != "SIMPLE"


def table(prompt: str, predictor: TierSuccessPredictor) -> tuple[float, bool]:
    found = predictor.predict(prompt, classify_prompt(prompt))
    return 1 - found.probabilities[1], found.required_tier > 1


def main() -> None:
    prompts = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    tiers = dict.fromkeys(("SIMPLE", "MEDIUM", "COMPLEX", "REASONING"), "any")
    router = ComplexityRouter("auto", Router(model_list=[]), {"tiers": tiers})
    predictor = TierSuccessPredictor(resolve_tier_artifact("ultrafeedback"))
    found: dict[str, object] = {"version": importlib.metadata.version("litellm")}
    for name, ask in (("heuristic", lambda p: rules(p, router)), ("heuristic_v2", lambda p: table(p, predictor))):
        began = time.process_time()
        answers = [ask(prompt) for prompt in prompts]
        ms = 1000 * (time.process_time() - began) / len(prompts)
        found[name] = {"scores": [a for a, _ in answers], "strong": [b for _, b in answers], "ms": ms}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
