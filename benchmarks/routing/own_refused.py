"""Own requests that the domain check takes for foreign, and foreign requests that it catches.

    python benchmarks/routing/own_refused.py FOLDER --label after                # of the smallfirst in PYTHONPATH
    python benchmarks/routing/own_refused.py FOLDER --table before after         # write benchmarks/results/own_refused.md

Rows given are drawn as for plain runs, and split as a run splits them: training and selection rows fit the profile and its
limit. Vectors of the frozen MiniLM are stored in FOLDER; from scratch they take some minutes of two cores.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.plain_runs import Row, draw, fresh, read_source, sampled_part, shuffled
from benchmarks.datasets import RESULTS, data_folder, read_lines
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.data.dataset import Dataset, Example, Message, sample_share, split
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
from smallfirst.routing.domain import fit_task_profile

SOURCES, SIZES, DRAWS = ("clinc150", "banking77", "snips"), (300, 600, 5_000), {300: 5, 600: 5, 5_000: 1}
N_HELD, N_FULL_HELD, N_OPEN = 1_000, 2_000, 700
"""Own rows measured of a sample and of a full set, and questions of NQ."""
FOLDS = 5


class StoredEncoder:
    """A frozen encoder whose vectors are kept in a file."""

    int8 = False

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, dict[str, np.ndarray]()
        if path.exists():
            file = np.load(path)
            self.known = dict(zip(file["texts"].tolist(), file["v"], strict=True))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in self.known]:
            self.known |= dict(zip(new, SentenceEncoder(find_weights(DEFAULT_ENCODER)).embed(new), strict=True))
            np.savez(self.path, texts=np.array(list(self.known)), v=np.stack(list(self.known.values())))
        return np.stack([self.known[text] for text in texts])


def foreign_texts(source: str) -> dict[str, list[str]]:
    nq = [line.get("prompt") or line["question"] for line in read_lines(data_folder("nq_open") / "test.jsonl")]
    seeds = [line["prompt"] for line in read_lines(data_folder("self_instruct_seed") / "train.jsonl")]
    found = {"NQ": nq[:N_OPEN], "self-instruct": seeds}
    if source == "clinc150":
        rows = read_lines(data_folder("clinc150") / "test.jsonl")
        found = {"its oos rows": [row["text"] for row in rows if row["label"] == "oos"], **found}
    return found


def dataset(rows: Sequence[Row]) -> Dataset:
    user = ((Message(role="user", content=row.text),) for row in rows)
    examples = (Example(messages=m, answer=row.label, shape="label") for m, row in zip(user, rows, strict=True))
    return Dataset(name="rows", examples=tuple(examples))


def measure(source: str, size: int, seed: int, encoder: StoredEncoder | None) -> dict[str, Any]:
    """Return (refused, n) of own held-back rows and of each kind of foreign ones."""
    train, test = read_source(source)
    full = size == SIZES[-1]
    if not full:
        wanted = sampled_part(source, train)
        train, test = [row for row in train if wanted(row)], [row for row in test if wanted(row)]
    given, rest = draw(train, size, seed=f"{source}-{size}" + (f"/{seed}" if seed else ""))
    held = fresh([*shuffled(test, str(seed)), *([] if full else rest)], given)[: N_FULL_HELD if full else N_HELD]
    parts = split(dataset(given), validation=0.2, test=0.2)
    selection, _ = sample_share(parts.validation, 0.2, "claims-desk")
    n = len(parts.train) + len(selection)
    declares = "refuse_own_at_most" in inspect.signature(fit_task_profile).parameters
    n_folds = FOLDS if declares or n < 1_000 else 0
    named: Any = None if encoder is None else ("frozen MiniLM", encoder)
    profile = fit_task_profile(parts.train, selection, encoder=named, n_folds=n_folds)

    def beyond(texts: Sequence[str]) -> tuple[int, int]:
        return sum(one.ood_score > profile.threshold for one in profile.measure(texts)), len(texts)

    parameters = profile.parameters
    fitted = (parameters.n_beyond, parameters.n_own) if declares else None
    foreign = {name: beyond(texts) for name, texts in foreign_texts(source).items()}
    return {"n": n, "fitted": fitted, "own": beyond([row.text for row in held]), "foreign": foreign}


def run(folder: Path, label: str) -> None:
    path, encoder = folder / f"{label}.json", StoredEncoder(folder / "vectors.npz")
    found = json.loads(path.read_text()) if path.exists() else {}
    for size in SIZES:
        for source in SOURCES:
            for kind in ("words", "MiniLM"):
                name = f"{source} {size} {kind}"
                if name not in found:
                    given = None if kind == "words" else encoder
                    found[name] = [measure(source, size, seed, given) for seed in range(DRAWS[size])]
                    path.write_text(json.dumps(found, indent=1))
                    print(label, name, found[name][0], flush=True)


HEAD = """# Own requests refused as foreign, and foreign ones caught

`python benchmarks/routing/own_refused.py FOLDER --label …`, {today}, 2 Intel cores without AMX, shared with other work.

Rows are drawn and split as in [plain runs](plain_runs.md); training and selection rows fit the profile and its limit: {labels}.
*Own refused*: of {held:,} own rows held back ({full:,} at 5,000 rows) those beyond the limit, the most that may be refused (a certificate may accept
some of them). Foreign rows, none of which was fitted on: CLINC150's 1,000 out-of-scope test rows, {open} questions of NQ, 175 self-instruct prompts.
The first of {draws} draws with its 95 % interval (Wilson); then the mean and the worst of all draws, and in how many more than 2 % are refused.

| set, rows | fitted on | reads | | own refused | mean; worst of draws | above 2 % | foreign caught |
|---|---|---|---|---|---|---|---|
"""

RUNS = "\n## Runs on CLINC150"
"""Where what was measured with the command line begins, which stays."""


def table(folder: Path, labels: Sequence[str]) -> None:
    results = {label: json.loads((folder / f"{label}.json").read_text()) for label in labels}
    lines, above = [], dict.fromkeys(labels, 0)
    for name in results[labels[-1]]:
        source, size, kind = name.split()
        for label in labels:
            if not (draws := results[label].get(name)):
                continue
            shares, first = [one["own"][0] / one["own"][1] for one in draws], draws[0]
            n_above = sum(share > 0.02 for share in shares)
            above[label] += n_above
            caught = " · ".join(f"{what} {_share(found)}" for what, found in first["foreign"].items())
            own = f"{_share(first['own'])}, n={first['own'][1]:,}"
            several = f"{np.mean(shares):.3f}; {max(shares):.3f}" if len(shares) > 1 else ""
            cells = (f"{source}, {int(size):,}", f"{first['n']:,}", kind, label, own, several)
            lines.append(f"| {' | '.join(cells)} | {n_above} of {len(shares)} | {caught} |")
    n_draws = sum(map(len, results[labels[-1]].values()))
    told = "before, the share 0.97 by ranks of the rows that fitted them (commit 71aa3156); after, at most 0.02, out of fold"
    text = HEAD.format(today=date.today(), labels=told, held=N_HELD, full=N_FULL_HELD, open=N_OPEN, draws=DRAWS[300])
    sums = ", ".join(f"{label} in {n}" for label, n in above.items())
    end = f"\nOf {n_draws} fits more than 2 % of the own rows held back are refused {sums}.\n"
    end += "These draws were seen while the rule was made; nothing of it is fitted on them.\n"
    page = RESULTS / "own_refused.md"
    _, mark, runs = page.read_text(encoding="utf-8").partition(RUNS) if page.exists() else ("", "", "")
    page.write_text(f"{text}{chr(10).join(lines)}\n{end}{mark}{runs}", encoding="utf-8")


def _share(found: Sequence[int]) -> Estimate:
    return wilson(found[0], found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--label")
    parser.add_argument("--table", nargs="+")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.label:
        run(options.folder, options.label)
    if options.table:
        table(options.folder, options.table)


if __name__ == "__main__":
    main()
