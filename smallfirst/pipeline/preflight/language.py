"""Rows in another language than English, which the catalogue's sentence encoders were not trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from smallfirst.data.quality.findings import Finding, make_finding
from smallfirst.errors import MissingExtra
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, LARGER_ENCODER
from smallfirst.project.candidates import project_candidates
from smallfirst.project.project import Project
from smallfirst.routing.policies.rule import detect_language, dominant_script

SAMPLE = 200
"""So many training rows are read, evenly spaced."""
MIN_LETTERS = 20
"""A shorter text's language is a guess."""
MAX_SHARE = 0.2
"""Above this share there is a finding. Of seven English sets, 0 to 3 % of the rows were taken for another language."""


def language_findings(project: Project) -> Iterator[Finding]:
    """Yield a note if many rows are not English and a candidate reads them with an encoder trained on English."""
    named = (candidate.encoder_name(project.file.small) for candidate in project_candidates(project))
    english = [name for name in dict.fromkeys(named) if name in (DEFAULT_ENCODER, LARGER_ENCODER)]
    found, n = other_languages([example.text for example in project.rows.train.examples]) if english else (Counter(), 0)
    if found.total() > MAX_SHARE * n:
        languages = ", ".join(language for language, _ in found.most_common(3))
        what = f"{found.total():,} of {n:,} training rows looked at are not English ({languages})"
        rule = (
            f"{' and '.join(english)} learnt English alone: name the folder of a multilingual sentence encoder in "
            "small.encoder, or trust the candidate words, which knows no language beforehand"
        )
        yield make_finding("note", what, rule, n=found.total())


def other_languages(texts: Sequence[str]) -> tuple[Counter[str], int]:
    """Return how many of a sample are in each language but English, by ISO 639-1 code, and the size of the sample.

    Without the extra `language` only other scripts than the Latin are told apart, by Unicode's names.
    """
    long = [text for text in texts if sum(map(str.isalpha, text)) >= MIN_LETTERS]
    sample = long[:: -(-len(long) // SAMPLE) or 1]
    try:
        found = Counter(map(detect_language, sample))
    except MissingExtra:
        found = Counter(dominant_script(text).capitalize() for text in sample)
    for english in ("en", "Latin"):
        found.pop(english, None)
    return found, len(sample)
