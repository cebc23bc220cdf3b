"""The peers' side of benchmarks/routing/frontier.py, run by the interpreter of an environment that has one of them.

    python -m benchmarks.peers.route_thresholds tracer-llm|jevstiller|safedecide DRAWS.npz OUT.npz

DRAWS.npz holds, for one pool: `confidence`, `answer` and `gold` (numbers of labels) of its rows, `rows` (draws by n), the
promises `alpha`, and `n_labels`. OUT.npz gets, for each method, a threshold by draw and promise, above 1 where it keeps
nothing. Each peer chooses its threshold with its own function and its own grid, at 95 %:

- tracer-llm 0.3.3: `fit.pipeline._calibrate_threshold`, the step that `tracer.fit` ends with; its own level is 90 %.
- safedecide 0.1.0: `conformal.calibrate_selective`, at 95 % and at its own 90 %.
- jevstiller 0.5.3: `_calibrate.fit_policy`. It bounds answered-and-wrong as a share of all requests, so it is asked twice:
  with the promise as its budget (`as a budget`: its own promise), and with the largest budget which, divided by the share
  answered, is the promise (`converted`: c times the promise for c = 1, 0.95, … until a share of c is answered).
"""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

NEVER = 1.01
Choose = Callable[[np.ndarray, np.ndarray, np.ndarray, float], float]
"""From confidence, answer, gold and promise to a threshold."""


def module(package: str, place: str) -> ModuleType:
    """Load one file of a package without its other parts, some of which want PyTorch or a server."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / place
    spec = importlib.util.spec_from_file_location(f"{package}_{path.stem}", path)
    assert spec is not None
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def tracer() -> Iterator[tuple[str, Choose]]:
    from tracer.fit import pipeline  # type: ignore[import-not-found]

    pipeline._cp_lower = functools.lru_cache(None)(pipeline._cp_lower)  # the same numbers, asked once each

    def choose(said: np.ndarray, answer: np.ndarray, gold: np.ndarray, alpha: float) -> float:
        found = pipeline._calibrate_threshold(said, answer, gold, 1 - alpha, 0.05)
        return NEVER if found is None else float(found["threshold"])

    yield "tracer-llm, 95 %", choose


def safedecide() -> Iterator[tuple[str, Choose]]:
    conformal = module("safedecide", "conformal.py")
    conformal.clopper_pearson_upper = functools.lru_cache(None)(conformal.clopper_pearson_upper)

    def choose(delta: float, said: np.ndarray, answer: np.ndarray, gold: np.ndarray, alpha: float) -> float:
        found = conformal.calibrate_selective(said, answer == gold, alpha, delta).threshold
        return NEVER if math.isinf(found) else float(found)

    yield "safedecide, 95 %", functools.partial(choose, 0.05)
    yield "safedecide, its 90 %", functools.partial(choose, 0.1)


def jevstiller(n_labels: int) -> Iterator[tuple[str, Choose]]:
    calibrate = module("jevstiller", "_calibrate.py")
    calibrate.clopper_pearson_upper = functools.lru_cache(None)(calibrate.clopper_pearson_upper)
    grid = calibrate.threshold_grid(n_labels)

    def budget(said: np.ndarray, answer: np.ndarray, gold: np.ndarray, alpha: float) -> float:
        found = calibrate.fit_policy(said, answer == gold, np.zeros(len(said)), alpha, candidates=grid)
        return NEVER if found.conf_threshold is None else float(found.conf_threshold)

    def converted(said: np.ndarray, answer: np.ndarray, gold: np.ndarray, alpha: float) -> float:
        for share in np.arange(1, 0, -0.05):
            threshold = budget(said, answer, gold, float(alpha * share))
            if threshold < 1 and (said >= threshold).mean() >= share:
                return threshold
        return NEVER

    yield "jevstiller, as a budget", budget
    yield "jevstiller, converted", converted


def main() -> None:
    package, source, target = sys.argv[1:4]
    given = np.load(source)
    methods = {"tracer-llm": tracer, "safedecide": safedecide, "jevstiller": lambda: jevstiller(int(given["n_labels"]))}
    said, answer, gold = (given[name] for name in ("confidence", "answer", "gold"))
    found = {
        name: np.array(
            [[choose(said[rows], answer[rows], gold[rows], float(a)) for a in given["alpha"]] for rows in given["rows"]]
        )
        for name, choose in methods[package]()
    }
    np.savez(target, **found)


if __name__ == "__main__":
    main()
