"""Rows that are not English are noted where an English encoder would read them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fixtures.preflight import project_of

from smallfirst.data.dataset import Message
from smallfirst.errors import MissingExtra
from smallfirst.pipeline.preflight import check
from smallfirst.pipeline.preflight.check import language_findings, other_languages

GERMAN = ["Wo ist meine Karte geblieben?", "Ich möchte das Geld für die Bestellung zurück haben."]
ENGLISH = ["Where is my card, it was due on Monday", "I would like my money back for this order, please"]


def test_languages_are_counted_without_english_and_without_short_texts() -> None:
    assert other_languages([*GERMAN, *ENGLISH, "Karte", "6 a.m."]) == (Counter(de=2), 4)
    assert other_languages(["ok"]) == (Counter(), 0)


def test_a_large_set_is_sampled_evenly() -> None:
    found, n = other_languages(ENGLISH[:1] * 250 + GERMAN[:1] * 250)
    assert (found, n) == (Counter(de=83), 167)  # every third


def test_without_the_extra_other_scripts_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(text: str) -> str:
        raise MissingExtra("Rules on languages", "language")

    monkeypatch.setattr(check, "detect_language", missing)
    assert other_languages([*GERMAN, "Где моя карта, она должна была прийти"]) == (Counter(Cyrillic=1), 3)


@pytest.mark.parametrize(
    ("texts", "more", "noted"),
    [
        (GERMAN, "", True),
        (ENGLISH, "", False),
        (GERMAN[:1] + 4 * ENGLISH[:1], "", False),  # a fifth is not above the bar
        (GERMAN + 7 * ENGLISH[:1], "", True),
        (GERMAN, "ladder: [words]\n", False),
        (GERMAN, "small: {encoder: multilingual, larger_encoder: multilingual}\n", False),
    ],
)
def test_a_note_names_the_encoder_and_what_to_do(texts: list[str], more: str, noted: bool, tmp_path: Path) -> None:
    project = project_of(tmp_path, more=more)
    train = project.rows.train
    asked = [(Message(role="user", content=text),) for text in texts]
    examples = tuple(train.examples[i].model_copy(update={"messages": messages}) for i, messages in enumerate(asked))
    rows = project.rows.model_copy(update={"train": train.subset("train", examples)})
    findings = list(language_findings(project._replace(rows=rows)))
    assert len(findings) == noted
    if noted:
        assert findings[0].what == f"2 of {len(texts)} training rows looked at are not English (de)"
        assert "sentence-transformers/all-MiniLM-L6-v2 learnt English alone" in findings[0].rule
        assert "small.encoder" in findings[0].rule
