"""Certificates where calibration rows are not what the theory asks for: repeats, groups, policies, several looks.

    python -m benchmarks.routing.certificates_traps [--draws 1000]      # about 20 minutes on two busy cores
    python -m benchmarks.routing.certificates_traps --tries             # the section on ten tries alone, two minutes

Each case is drawn twice from the same seeds: `as they are` takes the rows for independent, served without a filter and
looked at once; `counted` is what the package does. A certificate is broken if, over the whole pool, more accepted
answers are wrong than guaranteed. Needs RouteLLM's GSM8K and Banking77 under $SMALLFIRST_DATA; Banking77's answers are
those of a linear model on words, fitted on its training rows here. Replaces its sections of
benchmarks/results/certificates.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from typing import NamedTuple

import numpy as np

from benchmarks.datasets import data_folder, read_lines
from benchmarks.routing.certificates import RESULT, TRAPS, TRIES, gsm8k, gsm8k_questions, one_stage, share_of
from smallfirst.base.stats.sample_size import rows_for_error
from smallfirst.data.copies import independent_rows
from smallfirst.models.protocol import Request
from smallfirst.routing.certificate.calibration_set import CalibrationSet, one_row_a_unit
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.looks import LARGE, SMALL
from smallfirst.routing.certificate.threshold_search import (
    DEFAULT_STARTS,
    Starts,
    choose_starts,
    search_rows,
    search_threshold,
    start_rows,
)
from smallfirst.routing.policies import RulePolicy

COPIES = 5
"""Rows of a text, or of a group."""
MAX_LOOKS = 5
N_TRIES, TRY_DRAWS = 10, 2000


class Pool(NamedTuple):
    """Recorded answers, one row for each text, and the sizes and limits to draw with."""

    name: str
    rows: CalibrationSet
    texts: list[str]
    n: int
    limits: tuple[float, ...]
    through: np.ndarray
    """By row: no policy takes it."""


def pool_of(name: str, rows: CalibrationSet, texts: list[str], n: int, limits: tuple[float, ...]) -> Pool:
    """Return one row a text; a rule leads the half that is right more often, the shorter or the longer, elsewhere."""
    own = np.array(independent_rows(texts))
    rows, texts = rows.take(own), [texts[i] for i in own.tolist()]
    lengths = np.array([len(text) for text in texts])
    half, right = int(np.median(lengths)), rows.right[0]
    shorter = right[lengths < half].mean() > right[lengths >= half].mean()
    length = {"shorter_than_chars": half} if shorter else {"longer_than_chars": half}
    rule = RulePolicy(kind="rule", to="large", **length)  # type: ignore[arg-type]
    through = np.array([rule.decide(Request.ask(text)) is None for text in texts])
    return Pool(name, rows, texts, n, limits, through)


class Draw(NamedTuple):
    """Calibration rows of one draw, and the rows for which the certificate must hold."""

    as_they_are: CalibrationSet
    counted: CalibrationSet
    population: CalibrationSet


def threshold(rows: CalibrationSet, guarantee: Guarantee) -> float:
    return search_threshold(rows.confidence[0].tolist(), rows.right[0].tolist(), guarantee).threshold


def broken(population: CalibrationSet, at: float, limit: float) -> bool:
    accepted = population.confidence[0] >= at
    return bool(accepted.any() and (~population.right[0][accepted]).mean() > limit)


def repeats(pool: Pool, draw: np.random.Generator) -> Draw:
    own = np.repeat(draw.integers(0, pool.rows.n, pool.n // COPIES), COPIES)
    kept = own[independent_rows([pool.texts[i] for i in own.tolist()])]
    return Draw(pool.rows.take(own), pool.rows.take(kept), pool.rows)


def groups(pool: Pool, draw: np.random.Generator) -> Draw:
    """Five rows a group that are answered alike: equally right, of neighbouring confidence."""
    order = np.lexsort((pool.rows.confidence[0], pool.rows.right[0]))
    own = order[: pool.rows.n // COPIES * COPIES].reshape(-1, COPIES)
    drawn = draw.integers(0, len(own), pool.n // COPIES)
    rows, names = own[drawn].ravel(), np.repeat(drawn, COPIES).astype(str).tolist()
    kept = rows[independent_rows([pool.texts[i] for i in rows.tolist()], groups=names)]
    return Draw(pool.rows.take(rows), pool.rows.take(kept), pool.rows.take(own.ravel()))


def policies(pool: Pool, draw: np.random.Generator) -> Draw:
    own, through = draw.integers(0, pool.rows.n, pool.n), pool.through
    return Draw(pool.rows.take(own), pool.rows.take(own[through[own]]), pool.rows.take(np.flatnonzero(through)))


CASES: dict[str, Callable[[Pool, np.random.Generator], Draw]] = {
    f"repeats: each text {COPIES} times": repeats,
    f"groups of {COPIES}": groups,
    "a policy takes the easier half": policies,
}


def spent_by_look(number: int) -> float:
    """Return the share of the level that a look takes where the first one takes the large portion."""
    return LARGE if number == 1 else SMALL / ((number - 1) * number)


def looks(pool: Pool, draw: np.random.Generator, limit: float, *, spent: bool) -> tuple[bool, bool]:
    """Return whether a certificate was issued, and whether it is broken, following the advice after each refusal."""
    own = draw.integers(0, pool.rows.n, pool.n // 4)
    for look in range(1, MAX_LOOKS + 1):
        levels = [0.05 * spent_by_look(k) if spent else 0.05 for k in (look, look + 1)]
        rows = pool.rows.take(own)
        at = threshold(rows, Guarantee(max_error=limit, confidence=1 - levels[0]))
        if at <= 1:
            return True, broken(pool.rows, at, limit)
        if look < MAX_LOOKS:
            score, right = rows.confidence[0], rows.right[0]
            advice = rows_for_error(score, right, limit, levels[1], refused_at=levels[0], max_rows=1600)
            own = np.concatenate([own, draw.integers(0, pool.rows.n, advice.n_more)])
    return False, False


class Line(NamedTuple):
    """Counts of issued and of broken certificates."""

    case: str
    limit: float
    as_they_are: tuple[int, int]
    counted: tuple[int, int]


def measured(pool: Pool, draws: int) -> Iterator[Line]:
    for limit in pool.limits:
        for case, drawn in CASES.items():
            found = np.zeros((2, 2), dtype=int)
            for seed in range(draws):
                one = drawn(pool, np.random.default_rng(seed))
                for way, rows in enumerate((one.as_they_are, one.counted)):
                    at = threshold(rows, Guarantee(max_error=limit))
                    found[way] += at <= 1, at <= 1 and broken(one.population, at, limit)
            yield Line(case, limit, *(tuple(counts.tolist()) for counts in found))
        found = np.zeros((2, 2), dtype=int)
        for seed in range(draws):
            for way, spent in enumerate((False, True)):
                found[way] += looks(pool, np.random.default_rng(seed), limit, spent=spent)
        yield Line(f"up to {MAX_LOOKS} looks", limit, *(tuple(counts.tolist()) for counts in found))


def groupings(pool: CalibrationSet, n: int, draw: np.random.Generator) -> Iterator[tuple[CalibrationSet, Starts]]:
    """Yield the same rows as they are, and then in pairs that are drawn anew each time: one row a pair counts."""
    rows = pool.take(draw.integers(0, pool.n, n))
    yield rows, DEFAULT_STARTS
    for _ in range(1, N_TRIES):
        yield rows.take(one_row_a_unit(draw.permutation(n) // 2)), DEFAULT_STARTS


def selections(
    pool: CalibrationSet, n: int, limit: float, draw: np.random.Generator
) -> Iterator[tuple[CalibrationSet, Starts]]:
    """Yield the same rows each time, and where 200 other selection rows begin the search."""
    rows = pool.take(draw.integers(0, pool.n, n))
    for _ in range(N_TRIES):
        own = draw.integers(0, pool.n, 200)
        yield rows, choose_starts(pool.confidence[0][own], pool.right[0][own], n, limit, 0.05 * spent_by_look(1))


def nothing_to_find() -> CalibrationSet:
    """Return rows of which at least 5.03 % are wrong from every confidence on: every certificate of 5 % is broken."""
    n_wrong = np.ceil(0.0503 * np.arange(10_001))
    return one_stage(np.linspace(1, 0, 10_000), n_wrong[1:] == n_wrong[:-1])


def tries_lines(name: str, pool: CalibrationSet, n: int, limit: float) -> list[str]:
    """Return a line for each way to try again: how often one of ten certificates is broken over the whole pool."""
    ways: dict[str, Callable[[np.random.Generator], Iterator[tuple[CalibrationSet, Starts]]]] = {
        "other groups": lambda draw: groupings(pool, n, draw),
        "other selection rows": lambda draw: selections(pool, n, limit, draw),
    }
    lines = []
    for way, tried in ways.items():
        first, as_first, counted = np.zeros(2, dtype=int), np.zeros(2, dtype=int), np.zeros(2, dtype=int)
        for seed in range(TRY_DRAWS):
            found = np.zeros((N_TRIES, 2, 2), dtype=bool)  # by try and count: issued, broken
            for k, (rows, starts) in enumerate(tried(np.random.default_rng(seed)), start=1):
                for count, look in enumerate((1, k)):
                    level = 0.05 * spent_by_look(look)
                    first_rows = start_rows(rows.n, limit, level, starts)
                    at = search_rows(rows.confidence[0], rows.right[0], limit, level, first_rows).threshold
                    found[k - 1, count] = at <= 1, at <= 1 and broken(pool, at, limit)
            first += found[0, 0]
            as_first += found[:, 0].any(axis=0)
            counted += found[:, 1].any(axis=0)
        shares = [share_of(int(wrong), TRY_DRAWS, int(issued)) for issued, wrong in (first, as_first, counted)]
        lines.append(f"| {name}, at most {100 * limit:g} % wrong | {way} | {' | '.join(shares)} |\n")
        print(lines[-1], end="", flush=True)
    return lines


def banking_words() -> tuple[CalibrationSet, list[str]]:
    """Return validation and test rows of Banking77 as a linear model on words answers them."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    folder = data_folder("banking77")
    rows = {part: list(read_lines(folder / f"{part}.jsonl")) for part in ("train", "validation", "test")}
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    table = words.fit_transform([row["text"] for row in rows["train"]])
    model = LogisticRegression(C=20, max_iter=60).fit(table, [row["label"] for row in rows["train"]])
    held = [*rows["validation"], *rows["test"]]
    shares = model.predict_proba(words.transform([row["text"] for row in held]))
    right = (model.classes_[shares.argmax(1)] == np.array([row["label"] for row in held]))[None]
    return one_stage(shares.max(1), right[0]), [row["text"] for row in held]


def pool_lines(name: str, draws: int) -> list[str]:
    if name == "GSM8K":
        pool = pool_of(name, gsm8k(), gsm8k_questions(), 400, (0.2, 0.25))
    else:
        pool = pool_of(name, *banking_words(), 800, (0.03, 0.05))
    lines = []
    for one in measured(pool, draws):
        cells = [f"{pool.name}, at most {100 * one.limit:g} % wrong", one.case]
        for issued, wrong in (one.as_they_are, one.counted):
            cells += [f"{issued / draws:.3f}", share_of(wrong, draws, issued)]
        lines.append(f"| {' | '.join(cells)} |\n")
        print(lines[-1], end="", flush=True)
    return lines


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--draws", type=int, default=1000)
    asked.add_argument("--tries", action="store_true")
    draws, tries = asked.parse_args().draws, asked.parse_args().tries
    text = RESULT.read_text(encoding="utf-8")
    if tries:
        words, _ = banking_words()
        lines = tries_lines("nothing to find, 300 rows", nothing_to_find(), 300, 0.05)
        lines += [line for limit in (0.03, 0.05) for line in tries_lines("Banking77, 800 rows", words, 800, limit)]
        before, heading, after = text.partition(TRAPS)
        page = f"{TRIES}\n\n{TRIES_PAGE.format(today=date.today(), draws=TRY_DRAWS)}{''.join(lines)}"
        RESULT.write_text(f"{before.partition(TRIES)[0].rstrip()}\n\n{page}\n{heading}{after}", encoding="utf-8")
        return
    with ProcessPoolExecutor(2) as workers:
        lines = [line for found in workers.map(pool_lines, ("GSM8K", "Banking77"), (draws, draws)) for line in found]
    before = text.partition(TRAPS)[0].rstrip()
    page = PAGE.format(today=date.today(), draws=draws) + "".join(lines)
    RESULT.write_text(f"{before}\n\n{TRAPS}\n\n{page}", encoding="utf-8")


PAGE = """`python -m benchmarks.routing.certificates_traps`, {today}, 2 shared cores, Zen 5, 24 GB, Python 3.11; {draws} draws a line,
judged by the whole pool. **As they are**: rows taken for independent, no filter, each look at the whole level. **Counted**: one row a text,
near-copy or group; the policy applied to calibration rows; look k at 1 / (k (k + 1)) of the level. Answers to GSM8K (400 rows drawn)
as above, to Banking77 (800 drawn) by a linear model on words. Repeats and groups are five rows each of 80 or 160 texts or groups; rows of a
group are right or wrong together. The policy leads the half of the requests that is right more often, by length, to the large model.
Looks begin at a quarter of the rows, and each refusal's advice is followed, old rows kept.

| pool and guarantee | case | issued, as they are | broken | issued, counted | broken |
|---|---|---|---|---|---|
"""

TRIES_PAGE = """`python -m benchmarks.routing.certificates_traps --tries`, {today}, 2 Intel cores with AMX, 24 GB, no GPU, Python 3.11; {draws} draws a
line. The same calibration rows are certified ten times: with other groups (first none, then pairs of rows by lot, one row of each counts), or
with 200 other selection rows, which choose where the search begins. **Broken**: over the whole pool one of the certificates does not hold, of
all draws with an exact 95 % interval; in brackets of those in which one was issued. At most 0.05 is promised for all together. **One try**:
the first alone. **Uncounted**: each at the first look's level, as it was when groups and selection rows told no look from another.
**Counted**: try k at 1 / (k (k + 1)) of the level, which is what `certify` does now. Nothing to find: 5.03 % are wrong at every
threshold, so every certificate is broken. Banking77: a linear model on words.

| pool and guarantee | tried again with | one try | uncounted | counted |
|---|---|---|---|---|
"""


if __name__ == "__main__":
    main()
