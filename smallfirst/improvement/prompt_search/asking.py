"""Ask the large model under the prompts of a search, within its budget. Every answer is recorded and asked for once.

Answers lie where `smallfirst evaluate` looks for those of the same prompt, so an interrupted search that is called
again replays what it has, and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from smallfirst.data.dataset import Example, Message
from smallfirst.errors import BadAnswer, SmallfirstError
from smallfirst.models.few_shot import NearestShots, PromptedModel, fixed_shots
from smallfirst.models.protocol import Model, Request
from smallfirst.models.recorded.record import Spending, record
from smallfirst.models.recorded.replay import RecordedAnswer, read_recording, request_key
from smallfirst.models.recorded.spending_cap import SpendingCap
from smallfirst.paths import home
from smallfirst.pipeline import large_model
from smallfirst.progress import ProgressCallback, no_progress
from smallfirst.project.expenses import note_recording
from smallfirst.project.project import Project
from smallfirst.project.prompt_file import Prompt
from smallfirst.project.task_file import LargeConfig, TaskFile
from smallfirst.sync import run_sync
from smallfirst.tasks.task import Shot

PROPOSAL_TOKENS = 1024
"""Most tokens of proposed instructions."""
PROPOSAL_TEMPERATURE = 0.7
"""Temperature at which instructions are proposed, so that proposals differ."""


class BudgetSpent(SmallfirstError):
    """The next requests are more than the search may send."""


class Asking:
    """The large model and the model that proposes instructions, with what all their answers took."""

    def __init__(self, project: Project, *, max_requests: int, max_usd: float | None) -> None:
        """Count every answer against both limits, those recorded by an interrupted search included."""
        self.file = _without_recordings(project.file)
        self._project, self._max_requests = project, max_requests
        self._cap = SpendingCap(max_usd)
        self._used: dict[tuple[Path, str], RecordedAnswer] = {}
        self._nearest: dict[int, NearestShots] = {}
        self._model: Model | None = None
        self._writer: _Writer | None = None

    @property
    def answers(self) -> list[RecordedAnswer]:
        """Every answer of the search, proposals included, each once."""
        return list(self._used.values())

    @property
    def name(self) -> str:
        """Name of the model that answers."""
        return self._model.name if self._model else ""

    @property
    def n_left(self) -> int:
        """Requests that may still be sent."""
        return self._max_requests - len(self._used)

    @property
    def proposer(self) -> str:
        """Name of the model that proposed instructions; empty if none did."""
        return self._writer.model.name if self._writer else ""

    def answer(self, prompt: Prompt, examples: Sequence[Example]) -> list[RecordedAnswer | None]:
        """Return the large model's answers under a prompt, None where it gave none.

        Raise BudgetSpent or SpendingLimitReached before the limit would be exceeded; what was answered is kept.
        """
        file = self._file_with(prompt)
        task, rows = self._project.task, self._project.rows
        model = self._prompted(file)
        requests = [Request(messages=example.messages) for example in examples]
        path = large_model.recording_path(file, task)
        header = large_model.recording_header(file, task, rows)
        spending = Spending(self._cap, self._worst(file, model))
        with self._project.progress.bar(f"asking {model.name}", len(requests)) as update:
            return self._recorded(model, requests, path, header, spending, update)

    def propose(self, request: str) -> str:
        """Return what the proposing model writes to a request for better instructions. Raise as `answer`."""
        file = self._writer_file()
        self._writer = self._writer or _Writer(large_model.general_model(file))
        path = large_model.recording_path(file, self._project.task)
        header = large_model.recording_header(file, None, self._project.rows)
        header["settings"] |= {"max_tokens": PROPOSAL_TOKENS, "temperature": PROPOSAL_TEMPERATURE}
        asked = Request(
            messages=self._writer.messages(request), max_tokens=PROPOSAL_TOKENS, temperature=PROPOSAL_TEMPERATURE
        )
        path = path.with_name(f"{path.stem}-proposals.jsonl")
        spending = Spending(self._cap, self._worst(file, self._writer))
        found = self._recorded(self._writer.model, [asked], path, header, spending)[0]
        return found.answer if found else ""

    def close(self) -> None:
        """Free both models."""
        for model in (self._model, self._writer.model if self._writer else None):
            if model is not None:
                run_sync(model.aclose())

    def _recorded(
        self,
        model: Model,
        requests: Sequence[Request],
        path: Path,
        header: dict[str, Any],
        spending: Spending,
        progress: ProgressCallback = no_progress,
    ) -> list[RecordedAnswer | None]:
        keys = [request_key(request) for request in requests]
        self._count(path, keys)
        n_new = len({key for key in keys if (path, key) not in self._used})
        if n_new > self.n_left:
            raise BudgetSpent(f"{n_new} requests are needed and {self.n_left} of {self._max_requests} are left")
        home()  # the state folder is created when something is written
        try:
            if n_new:
                with suppress(BadAnswer):  # a row without an answer counts as wrong
                    run_sync(record(model, requests, path, header=header, spending=spending, progress=progress))
        finally:
            self._count(path, keys, paid=True)
            note_recording(self.file.name, "prompt search", path)
        return [self._used.get((path, key)) for key in keys]

    def _count(self, path: Path, keys: Sequence[str], *, paid: bool = False) -> None:
        """Note the answers in a recording that the search uses; `paid` ones are in the cap already."""
        wanted = {key for key in keys if (path, key) not in self._used}
        if not (wanted and path.exists()):
            return
        for row in read_recording(path)[1]:
            if row.key in wanted:
                self._used[path, row.key] = row
                self._cap.spent_usd += 0.0 if paid else row.cost_usd

    def _worst(self, file: TaskFile, model: Any) -> Any:
        return large_model.worst_usd(file, model) if self._cap.cap_usd is not None else lambda _: 0.0

    def _file_with(self, prompt: Prompt) -> TaskFile:
        changes: dict[str, Any] = prompt.model_dump(include={"shots_per_label", "nearest"}, exclude_none=True)
        return _with_large(self.file, **changes, prompt=prompt)

    def _prompted(self, file: TaskFile) -> PromptedModel:
        task, train, large = self._project.task, self._project.rows.train, file.large
        assert large is not None  # _without_recordings has raised
        self._model = self._model or large_model.answering_model(file, task)
        told, n = large_model.told_task(file, task), large.nearest
        if n and n not in self._nearest:  # one more, since a training row is nearest to itself
            self._nearest[n] = large_model.nearest_shots(file, train, n + 1)
        return PromptedModel(
            self._model,
            told,
            shots=() if n else fixed_shots(train, told, large.shots_per_label),
            selector=_Others(self._nearest[n], n) if n else None,
            max_tokens=task.max_answer_tokens,
        )

    def _writer_file(self) -> TaskFile:
        writer = self.file.large.prompt_writer if self.file.large else None
        return self.file.model_copy(update={"large": LargeConfig(endpoint=writer)}) if writer else self.file


class _Others:
    """Selects the nearest solved rows but the row itself."""

    def __init__(self, inner: NearestShots, n: int) -> None:
        self._inner, self._n = inner, n

    def select(self, text: str) -> Sequence[Shot]:
        return [shot for shot in self._inner.select(text) if shot.text != text][-self._n :]


class _Writer:
    """The proposing model, which reads a request as it is."""

    max_answer_tokens = PROPOSAL_TOKENS

    def __init__(self, model: Model) -> None:
        self.model = model

    def messages(self, text: str) -> tuple[Message, ...]:
        return (Message(role="user", content=text),)


def _with_large(file: TaskFile, **changes: Any) -> TaskFile:
    return file.model_copy(update={"large": file.large.model_copy(update=changes) if file.large else None})


def _without_recordings(file: TaskFile) -> TaskFile:
    """Return the file without the recordings that it names, which are of another prompt. Raise ConfigError."""
    large_model.general_source(file, download=False)
    return _with_large(file, recorded=None, recorded_open=None, max_usd=None)
