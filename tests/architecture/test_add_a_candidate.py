"""A new candidate is one file and one registration: every stage and the report take it from the registry."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from smallfirst.cli.main import main
from smallfirst.project.candidates import CANDIDATES
from smallfirst.project.run_folder import RunFolder

CANDIDATE = '''
"""The most frequent label of the rows that share the first word."""

from collections import Counter

from smallfirst.models.protocol import Capability, Completion, stream_in_one_chunk
from smallfirst.project.candidates import Candidate


class FirstWord(Candidate):
    name = "first-word"
    title = "first word"
    role = "a table of first words"
    size = 5
    closed_answers_only = True

    def fit(self, project, run_folder):
        folder = run_folder.model_folder(self.name)
        folder.mkdir()
        labels = {}
        for example in project.rows.train.examples:
            labels.setdefault(example.text.split()[0], Counter())[example.answer] += 1
        lines = [f"{word} {counts.most_common(1)[0][0]}" for word, counts in labels.items()]
        (folder / "words.txt").write_text("\\n".join(lines))

    def load(self, project, run_folder):
        lines = (run_folder.model_folder(self.name) / "words.txt").read_text().splitlines()
        return FirstWordModel(dict(line.split() for line in lines), project.task.closed[0])


class FirstWordModel:
    name = "first-word"
    capabilities = frozenset({Capability.STREAM})

    def __init__(self, labels, other):
        self.labels, self.other = labels, other

    async def complete(self, request):
        label = self.labels.get(request.text.split()[0], self.other)
        return Completion(text=label, answered_by=self.name, latency_ms=0.1, cost_usd=0.0, confidence=0.9)

    def stream(self, request):
        return stream_in_one_chunk(self, request)

    async def aclose(self):
        pass


FIRST_WORD = FirstWord()
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package of one file that registers the candidate."""
    (tmp_path / "first_word.py").write_text(CANDIDATE, encoding="utf-8")
    info = tmp_path / "first_word-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first-word\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[smallfirst.candidates]\nfirst-word = first_word:FIRST_WORD\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(CANDIDATES, "_loaded", dict(CANDIDATES._loaded))
    yield
    sys.modules.pop("first_word", None)


@pytest.fixture
def task(tmp_path: Path, tiny_folder: Path) -> Path:
    rows = [
        {"text": f"{word} number {i} of {i * 7919 % 1000}", "label": label}
        for i in range(60)
        for word, label in (("card", "cards"), ("fee", "fees"), ("pin", "codes"))
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = {
        "name": "desk",
        "data": {"train": "train.jsonl"},
        "small": {
            "base": str(tiny_folder),
            "training": {"duration": "1ba"},
            "candidates": ["first-word", "small"],
        },
        "gate": {"accuracy_at_least": 0.8},
        "routing": {"small": "smallest"},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return tmp_path / "task.yaml"


def test_a_candidate_of_another_package_is_checked_trained_evaluated_gated_and_reported(
    installed: None, task: Path
) -> None:
    for command in ("check", "train", "evaluate", "gate", "report"):
        result = CliRunner().invoke(main, [command, str(task)])
        assert result.exit_code == 0, f"{command}: {result.output}"
        if command == "gate":
            assert "smallest candidate that passes: first-word" in result.output
    run_folder = RunFolder.latest("desk")
    verdicts = run_folder.verdicts()
    assert [verdict.candidate for verdict in verdicts.verdicts] == ["first-word", "small"]
    assert verdicts.of("first-word").passed
    page = (run_folder.path / "report.html").read_text(encoding="utf-8")
    assert ": a table of first words" in page  # described below the table of candidates
    assert "A table of first words is good enough." in page  # the headline


def test_a_candidate_that_is_not_installed_is_refused_by_name(task: Path) -> None:
    result = CliRunner().invoke(main, ["check", str(task)])
    assert result.exit_code == 2
    assert 'small.candidates: "first-word" is no candidate; known: words, encoder, tuned, base, small' in result.output
