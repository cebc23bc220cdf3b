"""The Task: the only home of prompt text, parsing and scoring, used by training, evaluation and serving."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, wilson
from smallfirst.data.dataset import Dataset, Example, Message, RowFormat


class Shot(NamedTuple):
    """A solved example shown to a general model in its prompt."""

    text: str
    answer: str


class ScoredAnswer(NamedTuple):
    """One row's outcome, as the figures of a task are drawn from it."""

    golds: tuple[str, ...]
    """Answers that count as right, the first one being the row's own."""
    answer: str | None
    """The parsed answer; None if there was none."""
    score: float
    """What the task gave it, in [0, 1]."""
    text: str = ""
    """What was asked; empty where it is not known."""


class PartCounts(Record):
    """One label or one field: how often it was there, said and right."""

    name: str
    n_gold: int
    """Rows (for a list: items) in which it was there to be found."""
    n_said: int
    """How often an answer said it."""
    n_right: int
    n_missing: int = 0
    """There, but the answer says nothing (fields only)."""
    n_invented: int = 0
    """Not there, but the answer says something (fields only)."""

    @property
    def recall(self) -> Estimate:
        """Share of what was there that was found."""
        return wilson(self.n_right, self.n_gold)

    @property
    def precision(self) -> Estimate:
        """Share of what was said that is right."""
        return wilson(self.n_right, self.n_said)

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 if it was neither there nor said."""
        return 2 * self.n_right / max(1, self.n_gold + self.n_said)


class Task(Record, ABC):
    """How one narrow job is asked, answered and judged; further fields of a subclass are settings of `task.yaml`."""

    kind: str
    """Name of the kind in `TASK_KINDS`."""
    name: str
    """Short name, also the name of the served model."""
    about: str = ""
    """One sentence on the job, shown to general models."""

    request_noun: ClassVar[str] = "requests"
    """What a report calls the rows, in the plural."""
    no_answer: ClassVar[str | None] = None
    """The answer of a model that has none: such a request always goes on. None where every answer is one."""
    answered_noun: ClassVar[str] = "requests"
    """What shares of small answers are of, in the plural: all rows, or those with an answer where some have none."""
    held_out: ClassVar[tuple[float, float] | None] = None
    """Shares of the training rows for validation and test where there are no files of them; None: as of all kinds."""

    if TYPE_CHECKING:  # subclasses define these as fields or as properties

        @property
        def pass_score(self) -> float:
            """Score in (0, 1] from which an answer counts as right."""

        @property
        def max_answer_tokens(self) -> int:
            """Most tokens a written answer may have."""

    @property
    def closed(self) -> tuple[str, ...]:
        """Every allowed answer in a fixed order if the answers are a closed set; else empty."""
        return ()

    @property
    def answer_labels(self) -> tuple[str, ...]:
        """The labels in a fixed order of which an answer is one, or a JSON list of some; empty for other answers."""
        return self.closed

    @property
    @abstractmethod
    def row_formats(self) -> tuple[RowFormat, ...]:
        """Row formats that suit the task."""

    @property
    def part(self) -> Literal["label", "field", ""]:
        """What `parts` counts; empty if the task has no parts."""
        return ""

    def row_rule(self, example: Example) -> str:
        """Return the rule that a row breaks although its answer can be parsed; empty if it breaks none."""
        return ""

    def wrong_fields(self, golds: Sequence[str], answer: str | None) -> tuple[str, ...] | None:
        """Return the top-level fields of a JSON answer that are wrong or missing; None if answers have no fields."""
        return None

    def prompt(self, text: str) -> str:
        """Return what a fine-tuned model reads: the text and a cue of one token, cheaper than a chat template."""
        return f"{text.strip()} =>"

    def target(self, answer: str) -> str:
        """Return what a fine-tuned model learns to write after the prompt, without the end-of-turn token."""
        return f" {answer}"

    @abstractmethod
    def system_message(self) -> str:
        """Return the system message for a general model: the job and the allowed answers."""

    def instructions(self, shots: Sequence[Shot]) -> tuple[Message, ...]:
        """Return what a general model reads before the user's text: the system message and solved examples as turns."""
        turns = [Message(role="system", content=self.system_message())]
        for shot in shots:
            turns.append(Message(role="user", content=shot.text))
            turns.append(Message(role="assistant", content=shot.answer))
        return tuple(turns)

    def answer_schema(self) -> Mapping[str, Any] | None:
        """Return the JSON schema that every written answer must follow; None if answers are not JSON."""
        return None

    @abstractmethod
    def parse(self, text: str) -> str | None:
        """Return the answer in what a model wrote, in its canonical form; None if there is none."""

    @abstractmethod
    def score(self, golds: Sequence[str], answer: str | None) -> float:
        """Return how right a parsed answer is, in [0, 1]: the best over the gold answers. No answer scores 0."""

    @abstractmethod
    def measures(self, rows: Sequence[ScoredAnswer]) -> dict[str, Estimate]:
        """Return the task's own metrics by name (such as `macro_f1`), each with a 95 % interval, most telling first."""

    def parts(self, rows: Sequence[ScoredAnswer]) -> tuple[PartCounts, ...]:
        """Return counts by label or by field; empty if the task has no parts."""
        return ()

    @classmethod
    def template(cls) -> str:
        """Return the commented `task.yaml` that `smallfirst init` writes."""
        name = cls.model_fields["kind"].default
        return (resources.files("smallfirst.tasks") / "templates" / f"{name}.yaml").read_text(encoding="utf-8")

    @classmethod
    def setting_names(cls) -> frozenset[str]:
        """Return the settings of `task.yaml` that belong to this kind."""
        return frozenset(cls.model_fields) - frozenset(Task.model_fields)

    @classmethod
    def expand_settings(cls, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return the settings with shorthand written out and named files read; paths are relative to `folder`."""
        return settings

    @classmethod
    def complete_settings(cls, settings: dict[str, Any], train: Dataset, others: Sequence[Dataset]) -> dict[str, Any]:
        """Return the settings with those left out inferred from the rows; `others` are not trained on."""
        return settings

    @classmethod
    def row_labels(cls, settings: Mapping[str, Any], train: Dataset | None = None) -> tuple[str, ...] | None:
        """Return the labels that rows read after `train` must carry one of; None if rows carry no labels."""
        return None
