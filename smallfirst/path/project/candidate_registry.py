"""The registry of candidates and how each describes itself, for task.yaml, run folders and the report.

What a candidate does is in `candidates`.
"""

from __future__ import annotations

from typing import Any, Literal

from smallfirst.base.extensions import Registry

FINE_TUNED = "small"
"""Name of the fine-tuned language model, which the report compares the others with."""


class CandidateDescription:
    """How a candidate is named, described and treated."""

    name: str
    """The name it is registered under; used in task.yaml, file names and the report: letters, digits, `-` and `_`."""
    title: str
    """Short name for tables, such as "words + linear"."""
    explanation: str = ""
    """What it is and does in a line that needs no knowledge of models."""
    size: float
    """Sort key from the smallest model to the largest, in which candidates are shown. Built in: words 10,
    encoder 20, multilingual 25, tuned, tagger, reader and caller 30, larger_encoder 31, larger_tuned 32, blend 35,
    tagger_small 45, small 50. Which one is the cheapest is measured."""
    promise: float | None = None
    """Where time does not suffice for all, candidates of a higher promise are preferred; left out: `size`, since of
    models of a kind the larger ones answer better."""

    measured_by_default = False
    """Measure it if task.yaml has no `ladder`, as far as it suits."""
    closed_answers_only = False
    """Leave it out for tasks whose answers are not a closed set."""
    several_labels = False
    """With `closed_answers_only`: it can be used where a text may have several labels, too."""
    is_language_model = False
    """The report says when a candidate that is none suffices."""
    training_setting: Literal["", "training", "encoder_training"] = ""
    """Setting of `small` with which it is fine-tuned, so that its learning rate may be chosen; empty if it is not."""
    combines = False
    """It is made from the other candidates of the run, and fitted after them."""
    uses_sentence_encoder = False
    """Its sentence encoder is there to be used for out-of-domain detection as well."""
    for_other_languages = False
    """With `measured_by_default`: only where the rows hold another language than English, or several."""
    encoder_setting: Literal["", "encoder", "larger_encoder", "multilingual_encoder"] = ""
    """Setting below `small` that names its sentence encoder; empty if it has none."""

    def asked_for(self, file: Any) -> bool:
        """Return True if a run of this TaskFile without a `ladder` measures it.

        Where the file names an encoder of its own, one on the default larger encoder is not asked for.
        """
        own = {"encoder", "larger_encoder"} & file.small.model_fields_set
        return self.measured_by_default and not (self.encoder_setting == "larger_encoder" and own == {"encoder"})

    def encoder_name(self, small: Any) -> str:
        """Return its sentence encoder as the group `small` of a task file names it; empty if it has none."""
        return str(getattr(small, self.encoder_setting)) if self.encoder_setting else ""

    @property
    def folder(self) -> str:
        """Folder of its model below the run folder."""
        return self.name


CANDIDATES: Registry[CandidateDescription] = Registry(
    "smallfirst.candidates",
    {
        "words": "smallfirst.path.candidates.linear:WORDS",
        "encoder": "smallfirst.path.candidates.linear:ENCODER",
        "multilingual": "smallfirst.path.candidates.linear:MULTILINGUAL",
        "larger_encoder": "smallfirst.path.candidates.linear:LARGER_ENCODER",
        "tuned": "smallfirst.path.candidates.tuned:TUNED",
        "larger_tuned": "smallfirst.path.candidates.tuned:LARGER_TUNED",
        "blend": "smallfirst.path.candidates.blend:BLEND",
        "tagger": "smallfirst.path.candidates.tuned:TAGGER",
        "tagger_small": "smallfirst.path.candidates.joined:TAGGER_AND_SMALL",
        "reader": "smallfirst.path.candidates.tuned:READER",
        "caller": "smallfirst.path.candidates.caller:CALLER",
        FINE_TUNED: "smallfirst.path.candidates.language_model:SMALL",
    },
    noun="candidate",
)


def all_candidates() -> tuple[CandidateDescription, ...]:
    """Return every registered candidate, the smallest first."""
    return tuple(sorted((candidate for _, candidate in CANDIDATES), key=lambda candidate: candidate.size))


def candidate_names() -> tuple[str, ...]:
    """Return the name of every registered candidate, the smallest first."""
    return tuple(candidate.name for candidate in all_candidates())
