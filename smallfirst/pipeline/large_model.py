"""The large path of a task file: who answers, with which examples in the prompt, from where if recorded.

Answers to labelled rows are always written down and replayed: a row is asked (and paid) once, a stopped evaluation goes
on where it stopped, and the Router is measured on the very answers the large model was measured on.
"""

from __future__ import annotations

import io
import platform
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import smallfirst
from smallfirst.data.dataset import Dataset
from smallfirst.data.split import sample_share
from smallfirst.errors import BadAnswer, ConfigError
from smallfirst.files import write_atomically
from smallfirst.models.catalog import find_weights
from smallfirst.models.engines import selection as engines
from smallfirst.models.engines.engine import ModelSource
from smallfirst.models.few_shot import PromptedModel
from smallfirst.models.label_model import LabelModel
from smallfirst.models.linear.sentence_encoder import SentenceEncoder
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Chunk, Completion, Model, Request, stream_in_one_chunk
from smallfirst.models.recorded.record import record
from smallfirst.models.recorded.replay import ReplayModel
from smallfirst.paths import home
from smallfirst.progress import Progress
from smallfirst.project.rows import Rows
from smallfirst.project.task_file import LargeConfig, TaskFile
from smallfirst.records import fingerprint
from smallfirst.tasks.task import Shot, Task

_NOT_ASKED = {"recorded", "recorded_open", "sample_calibration", "sample_test", "sample_ceiling"}
"""Settings that do not change what the large model is asked."""
SECOND_ANSWER_TEMPERATURE = 0.7
"""Temperature at which it is asked a second time, to see how far it agrees with itself."""


def general_model(
    task_file: TaskFile, *, answers: tuple[str, ...] | None = None, schema: Mapping[str, Any] | None = None
) -> Model:
    """Return the general model itself, without a task's prompt. Raise ConfigError if task.yaml names none."""
    _config(task_file)
    source = general_source(task_file)
    if source is None:
        raise ConfigError(
            "large: names only recorded answers, no model that could answer new requests",
            hint="add endpoint:, gguf:, vllm: or engine: under large: in task.yaml",
        )
    return engines.load(source._replace(answers=answers, schema=schema))


def general_source(task_file: TaskFile, *, download: bool = True) -> ModelSource | None:
    """Return where the general model is and the engine that task.yaml names for it; None if it names no model."""
    engine = task_file.large.general_engine if task_file.large else None
    if engine is None:
        return None
    source = ModelSource(engine.model, engine=engine.name, settings=engine.settings, prices=task_file.prices)
    if source.is_address:
        return source
    local = task_file.path(Path(engine.model))
    weights = local if local.suffix == ".gguf" and local.is_file() else find_weights(engine.model, download=download)
    return source._replace(location=weights, name=engine.model.split("/")[-1])


def prompted_model(task_file: TaskFile, task: Task, train: Dataset) -> Model:
    """The general model asked for the task: label list, and solved examples from the training rows."""
    large = _config(task_file)
    chooser, shots = None, fixed_shots(train, task, large.shots_per_label)
    if large.nearest:
        encoder = SentenceEncoder(find_weights(task_file.small.encoder))
        chooser, shots = NearestShots(train, encoder, large.nearest, kept=home() / "vectors"), ()
    bound = large.only_labels and not large.endpoint
    inner = general_model(
        task_file, answers=task.closed or None if bound else None, schema=task.answer_schema() if bound else None
    )
    return PromptedModel(inner, task, shots=shots, chooser=chooser, max_tokens=task.max_answer_tokens)


def prompted_base(task_file: TaskFile, task: Task, train: Dataset) -> Model:
    """The base model before any fine-tuning, told the job in its chat template: what fine-tuning must beat.

    Closed answers are read from the probabilities of their texts, JSON is written under its schema.
    """
    folder, name, price = find_weights(task_file.small.base), task_file.small.base, task_file.prices.machine
    if task.closed:
        from smallfirst.models.local.label_trie import TrieScorer

        scorer = TrieScorer.load(folder, task)
        manifest = Manifest(kind="codes", task=task, base=name)
        return LabelModel(scorer, manifest, name=name, price=price)
    from smallfirst.models.generation.generator import Generator
    from smallfirst.models.generation.model import GenerativeModel

    inner = GenerativeModel.for_chat(
        Generator.load(folder, chat=True), name=name, price=price, schema=task.answer_schema()
    )
    return PromptedModel(inner, task, shots=fixed_shots(train, task, 1), max_tokens=task.max_answer_tokens)


async def recorded_answers(
    task_file: TaskFile, task: Task, rows: Rows, *, progress: Progress, parts: Sequence[str] = ("calibration", "test")
) -> ReplayModel:
    """Answers of the large path to the rows of some splits: those recorded earlier, and the missing ones asked now."""
    large = _config(task_file)
    if large.recorded and task_file.path(large.recorded).exists():
        return ReplayModel.load(task_file.path(large.recorded))
    path = task_file.path(large.recorded) if large.recorded else _own_recording(task_file, task)
    wanted = [e for part in parts for e in sample_rows(getattr(rows, part), large.sample(part)).examples]
    requests = [Request(messages=example.messages) for example in wanted]
    model = prompted_model(task_file, task, rows.train)
    if large.gguf and requests and not path.exists():
        await model.complete(requests[0])  # loading and the first reading of the prompt are nobody's latency
    with progress.bar(f"asking {model.name}", len(requests)) as update:
        await record(model, requests, path, header=_header(task_file, task, rows), progress=update)
    await model.aclose()
    return ReplayModel.load(path)


async def second_answers(task_file: TaskFile, task: Task, rows: Rows, *, progress: Progress) -> ReplayModel | None:
    """Second answers of the large path to some test rows, at temperature AGAIN; None if there are none to be had."""
    large = _config(task_file)
    first = task_file.path(large.recorded) if large.recorded else _own_recording(task_file, task)
    path = first.with_name(f"{first.stem}-again.jsonl")
    if large.general_engine:
        wanted = sample_rows(rows.test, n_second_answers(task_file)).examples
        requests = [Request(messages=e.messages, temperature=SECOND_ANSWER_TEMPERATURE, seed=1) for e in wanted]
        model = prompted_model(task_file, task, rows.train)
        header = _header(task_file, task, rows)
        header["settings"] = header["settings"] | {"temperature": SECOND_ANSWER_TEMPERATURE, "seed": 1}
        with progress.bar(f"asking {model.name} again", len(requests)) as update:
            await record(model, requests, path, header=header, progress=update)
        await model.aclose()
    return ReplayModel.load(path) if path.exists() else None


def n_second_answers(task_file: TaskFile) -> int:
    """Test rows that are asked twice: at most as many as are asked once."""
    large = _config(task_file)
    return min(large.sample_ceiling, large.sample_test or large.sample_ceiling)


async def recorded_open_answers(task_file: TaskFile, rows: Rows, *, progress: Progress) -> ReplayModel | None:
    """Answers of the general model to the open-ended requests; None if there are no such requests or recordings."""
    large = _config(task_file)
    if rows.open_ended is None or large.recorded_open is None:
        return None
    path = task_file.path(large.recorded_open)
    if not path.exists():
        model = general_model(task_file)
        requests = [Request(messages=e.messages, max_tokens=48) for e in rows.open_ended.examples]
        header = _header(task_file, None, rows) | {"settings": {"max_tokens": 48, "temperature": 0}}
        with progress.bar(f"asking {model.name}", len(requests)) as update:
            await record(model, requests, path, header=header, progress=update)
        await model.aclose()
    return ReplayModel.load(path)


class OpenAnswers:
    """Recorded open answers, for measuring a Router on labelled rows as well.

    A labelled row that a Router takes for an open-ended request was never recorded without the task's prompt. It gets
    no answer, which counts as wrong, at the cost and latency of the answer recorded with the prompt.
    """

    capabilities: frozenset[Capability] = frozenset()
    """What it can do beyond answering."""

    def __init__(self, open_answers: ReplayModel, task_answers: ReplayModel) -> None:
        self._open, self._task = open_answers, task_answers

    @property
    def name(self) -> str:
        """The general model's name."""
        return self._open.name

    async def complete(self, request: Request) -> Completion:
        """The recorded open answer, or an empty one. Raises BadAnswer if the request is in neither recording."""
        try:
            return await self._open.complete(request)
        except BadAnswer:
            return (await self._task.complete(request)).model_copy(update={"text": ""})

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """The same in one piece."""
        return stream_in_one_chunk(self, request)

    async def aclose(self) -> None:
        """Nothing is held."""


def sample_rows(data: Dataset, n: int | None) -> Dataset:
    """At most `n` rows, drawn by content hash, the same ones every time."""
    if n is None or n >= len(data):
        return data
    share = n / len(data)
    while len(taken := sample_share(data, min(1.0, share), "large")[0]) < n:
        share *= 1.05
    return data.subset(data.name, taken.examples[:n])


def fixed_shots(train: Dataset, task: Task, per_label: int) -> tuple[Shot, ...]:
    """The same solved rows for every request: for each label the ones of median length, labels taking turns."""
    if not task.closed:
        ordered = sorted(train.examples, key=lambda e: (len(e.text) + len(e.answer), e.key))
        n = min(4 * per_label, len(ordered))
        # One out of each equal part by length, so that short and long rows are shown, but not the longest.
        chosen = [ordered[(2 * i + 1) * len(ordered) // (2 * n)] for i in range(n)]
        return tuple(Shot(e.text, e.answer) for e in chosen)
    shots: list[tuple[int, Shot]] = []
    for label in task.closed:
        of_label = sorted((e for e in train.examples if e.answer == label), key=lambda e: (len(e.text), e.key))
        middle = max(0, (len(of_label) - per_label) // 2)
        shots += [(turn, Shot(e.text, label)) for turn, e in enumerate(of_label[middle : middle + per_label])]
    return tuple(shot for _, shot in sorted(shots, key=lambda pair: pair[0]))


class NearestShots:
    """The training rows most like a text, most alike last (next to the question). Any thread may ask.

    The rows' vectors are kept in the folder `kept`, so that a server need not read all rows anew whenever it starts.
    """

    def __init__(self, train: Dataset, encoder: SentenceEncoder, n: int, *, kept: Path | None = None) -> None:
        self.encoder, self.n = encoder, n
        self.shots = [Shot(e.text, e.answer) for e in train.examples]
        self._lock = threading.Lock()
        texts = [shot.text for shot in self.shots]
        if kept is None:
            self.vectors = encoder.embed(texts)
            return
        path = kept / f"{fingerprint([encoder.fingerprint, texts])}.npy"
        if not path.exists():
            content = io.BytesIO()
            np.save(content, encoder.embed(texts), allow_pickle=False)
            write_atomically(path, content.getvalue())
        self.vectors = np.load(path, allow_pickle=False)

    def choose(self, text: str) -> Sequence[Shot]:
        """The `n` nearest solved rows by cosine, nearest last."""
        with self._lock:
            vector = self.encoder.embed([text])[0]
        return [self.shots[i] for i in np.argsort(self.vectors @ vector)[-self.n :]]


def _config(task_file: TaskFile) -> LargeConfig:
    if task_file.large is None:
        raise ConfigError("task.yaml names no large model", hint="add a large: section, or leave out this step")
    return task_file.large


def _settings(large: LargeConfig) -> dict[str, Any]:
    """The settings that change answers. `engine` is left out where it is unused: recordings are older than it."""
    unused = set() if large.engine else {"engine"}
    return large.model_dump(mode="json", exclude=_NOT_ASKED | unused)


def _own_recording(task_file: TaskFile, task: Task) -> Path:
    """Where answers are kept when task.yaml names no place: one file per way of asking."""
    asked = _settings(_config(task_file))
    told = [message.model_dump() for message in task.instructions(())]
    way = fingerprint([asked, told, task.answer_schema(), task.max_answer_tokens])
    return home() / "recordings" / task.name / f"{way}.jsonl"


def _header(task_file: TaskFile, task: Task | None, rows: Rows) -> dict[str, Any]:
    from datetime import date

    large = _config(task_file)
    prompt: Any = "none: the request as it came"
    if task is not None:
        shots = fixed_shots(rows.train, task, large.shots_per_label)
        prompt = (
            f"label list, and the {large.nearest} training rows nearest to the request"
            if large.nearest
            else tuple(m.model_dump() for m in task.instructions(shots))
        )
    settings = _settings(large)
    settings.pop("endpoint")
    return {
        "made_at": date.today().isoformat(),
        "smallfirst": smallfirst.__version__,
        "command": "smallfirst record task.yaml",
        "settings": settings | {"temperature": 0},
        "prompt": prompt,
        "machine": f"{platform.machine()}, {platform.system()}, {_cores()} cores",
    }


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
