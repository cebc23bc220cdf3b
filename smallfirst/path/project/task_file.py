"""task.yaml as one record: the task, its rows, the models on both paths, the gate and the guarantee.

One file drives every stage, so what was measured is what is served. Paths in it are relative to the file.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic_core import PydanticCustomError

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.base.records import SETTINGS_PROBLEM, Record, explain_errors, parse_record, read_yaml
from smallfirst.data.row_formats import Columns
from smallfirst.measuring.gate import Gate
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, LARGER_ENCODER, MULTILINGUAL_ENCODER
from smallfirst.models.pricing import PriceBook
from smallfirst.models.remote.config import EndpointConfig, VllmServer
from smallfirst.path.project.candidate_registry import CANDIDATES, candidate_names
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.domain import DomainSettings
from smallfirst.routing.monitor import MonitorSettings
from smallfirst.routing.policies import AnyPolicy, check_stages
from smallfirst.routing.router import OutOfScope
from smallfirst.tasks import DEFAULT_KIND, TASK_KINDS
from smallfirst.training.config import OF_LANGUAGE_MODELS, TrainConfig

BEST, SMALLEST = "best", "smallest"
"""Values of `routing.small` that name a rule: the candidate of the most worth, the cheapest that passes the gate."""
RULES = (BEST, SMALLEST)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What the name of a task may be."""


def task_name(folder: Path) -> str:
    """Return the folder's name made valid, in lower case: `My Tickets` becomes `my-tickets`.

    A name without a Latin letter or digit gives `task-` and 6 hex digits of its hash, so two tasks never share one.
    """
    given = folder.absolute().resolve().name
    plain = unicodedata.normalize("NFKD", given).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("._-")[:64].rstrip("._-")
    return name or f"task-{hashlib.sha256(given.encode()).hexdigest()[:6]}"


def registry_name(name: str) -> str:
    """Return the three-level model name of a task that names none."""
    return f"main.default.{re.sub(r'[^A-Za-z0-9_-]', '_', name)}"


class DataFiles(Record):
    """Where the rows are: files, folders, tables or volumes (see smallfirst.data.sources.load)."""

    train: Path
    """Rows to train on; also split for the files that are left out."""
    validation: Path | None = None
    """Rows to choose and calibrate with; left out: 20 % of train (10 √n of over 2,500), by label and content hash."""
    test: Path | None = None
    """Rows to test with, used once; left out: 20 % of train (10 √n of over 2,500), by label and content hash."""
    open_ended: Path | None = None
    """Requests outside the task (column `prompt`), which should go to the large model."""
    out_of_scope_label: str | None = None
    """Label of rows, in any of the files, that are requests outside the task: they train nothing. Those of training and
    validation rows join `open_ended`, those of test rows measure the domain check."""
    relabels: Path | None = None
    """A person's answers to probable label errors (`smallfirst review --labels FILE` writes the file to fill in)."""
    harvested: tuple[Path, ...] = ()
    """Rows from served traffic (`smallfirst harvest` writes them), added to the training rows."""
    exchangeable: bool = False
    """True declares `validation` and `test` to be random draws of the same requests, which a run takes for granted only
    of what it splits itself: test rows then certify together with the calibration rows."""
    documents: Path | None = None
    """Folder of the files that `columns.file` names; left out: that of each file of rows."""
    columns: Columns = Columns()
    """Column names, where they differ from the default."""
    skip_bad_rows_up_to: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of the rows of a file that may be bad: they are left out and named. With more, nothing is trained."""

    @property
    def one_source(self) -> bool:
        """True if all parts are random draws of the same requests: split from one file, or declared so."""
        return self.exchangeable or (self.validation is None and self.test is None)


class SmallConfig(Record):
    """The model to fine-tune, and the sentence encoder."""

    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Name, folder or GGUF file of the base model."""
    training: TrainConfig = TrainConfig()
    """Training settings."""
    encoder: str = DEFAULT_ENCODER
    """Sentence encoder of the candidates `encoder`, `tuned`, `tagger` and `reader`, and for nearest examples."""
    larger_encoder: str = LARGER_ENCODER
    """Sentence encoder of the candidates `larger_encoder` and `larger_tuned`."""
    multilingual_encoder: str = MULTILINGUAL_ENCODER
    """Sentence encoder of the candidate `multilingual`."""
    encoder_training: TrainConfig = TrainConfig(duration="6ep", patience=2, max_seq_tokens=256)
    """Training settings of the candidates `tuned`, `larger_tuned`, `tagger` and `reader`. `learning_rate` left out: by
    the encoder's width, 2e-4 for 384 (MiniLM) and 5e-5 for 768 (mpnet). `frozen_layers` left out: a third of the
    layers where up to 1,000 rows teach labels, otherwise none. For labels, of longer texts than `max_seq_tokens` the
    beginning is read. Settings of language models, such as `method`, are refused."""
    vllm: VllmServer | None = None
    """The vLLM that runs the fine-tuned model, to measure it and to serve it; left out, PyTorch in this process."""

    @pydantic.field_validator("encoder_training")
    @classmethod
    def _encoders_read_it(cls, config: TrainConfig) -> TrainConfig:
        defaults = {name: TrainConfig.model_fields[name].default for name in OF_LANGUAGE_MODELS}
        if unread := [name for name, default in defaults.items() if getattr(config, name) != default]:
            raise ValueError(f"an encoder is fine-tuned whole; leave out {', '.join(unread)}")
        return config


class EngineConfig(Record):
    """A general model and the engine that runs it."""

    name: str
    """Registered name of the engine: `llama.cpp`, `PyTorch`, `endpoint`, or that of an installed package."""
    model: str
    """Catalogue name, folder or file of the model, or its address."""
    settings: dict[str, Any] = {}
    """Settings of the engine."""


class LargeConfig(Record):
    """The large model: where it runs, its prompt, and its recorded answers."""

    endpoint: EndpointConfig | None = None
    """An OpenAI-compatible endpoint."""
    gguf: str | None = None
    """A general model run here: catalogue name or GGUF file."""
    engine: EngineConfig | None = None
    """A general model and any registered engine with its settings, where the two short forms above do not do."""
    recorded: Path | None = None
    """Recorded answers to the task's rows (`smallfirst record` makes them); replayed instead of asking again."""
    recorded_open: Path | None = None
    """Recorded answers to the open-ended requests."""
    shots_per_label: int = pydantic.Field(default=1, ge=0)
    """Solved training rows per label shown in the prompt, the same for every request; for open answers four times as
    many rows in all."""
    nearest: int = pydantic.Field(default=0, ge=0)
    """Solved training rows nearest to the request shown in the prompt; replaces shots_per_label."""
    only_labels: bool = True
    """For engines on this machine: constrain the answer to the labels (llama.cpp), or to the schema."""
    sample_calibration: int | None = pydantic.Field(default=None, ge=1)
    """Number of calibration rows to ask, drawn by content hash; None asks all."""
    sample_test: int | None = pydantic.Field(default=None, ge=1)
    """Number of test rows to ask, drawn by content hash; None asks all."""
    max_usd: float | None = pydantic.Field(default=None, gt=0)
    """Most that its answers to the rows may cost in all, earlier runs included; a run stops before it spends more."""

    def sample(self, split: str) -> int | None:
        """Return how many rows of a split are asked; None means all."""
        return self.sample_test if split == "test" else self.sample_calibration

    @property
    def general_engine(self) -> EngineConfig | None:
        """The general model with its engine, whichever form names it; None if there are only recorded answers."""
        if self.endpoint:
            return EngineConfig(name="endpoint", model=self.endpoint.base_url, settings=self.endpoint.model_dump())
        if self.gguf:
            return EngineConfig(name="llama.cpp", model=self.gguf, settings={"slots": 2, "context_tokens": 16384})
        return self.engine

    @pydantic.model_validator(mode="after")
    def _names_one_model(self) -> LargeConfig:
        if sum(given is not None for given in (self.endpoint, self.gguf, self.engine)) > 1:
            raise ValueError("give one of endpoint, gguf and engine")
        if not (self.general_engine or self.recorded):
            raise ValueError("give endpoint, gguf, engine or recorded")
        return self


class RoutingConfig(Record):
    """The Router: its guarantee, its candidates and what happens to the other requests."""

    guarantee: Guarantee = Guarantee()
    """What is guaranteed about answers that stay small. Set here, what it does not cover goes to the large model."""
    small: str | None = None
    """The only candidate that may go live. Left out, or `best`: of those that are expected to pass the gate the one of
    the least expected loss at `usd_per_wrong_answer` or, without such a price, the cheapest of those within
    `accuracy_within` of the most accurate one. `smallest`: the cheapest one. Chosen on other rows than the test rows,
    which confirm it."""
    accuracy_within: float = pydantic.Field(default=0.01, ge=0, le=1)
    """How much less accurate than the best candidate a cheaper one may be, in [0, 1], where nothing prices errors."""
    ahead: tuple[str, ...] = ()
    """Smaller candidates that answer before it, the smallest first; each keeps the requests it is certified for."""
    selection_share: float = pydantic.Field(default=0.2, gt=0, lt=1)
    """Share of the validation rows used to choose (epoch, temperature, domain limit); the others only certify."""
    domain: DomainSettings = DomainSettings()
    """Whether foreign requests are told apart, and how many own ones that may cost; `off` alone is its mode."""
    out_of_scope: OutOfScope = OutOfScope()
    """What is answered to a request that is not the task's where there is no large model: never a certified label."""
    policies: tuple[AnyPolicy, ...] = ()
    """Policies applied in order before the cascade; the first that applies names the stage that answers."""
    person: bool = False
    """Leave requests that no model is confident about to a person, unless the large model was shown to be better."""
    usd_per_wrong_answer: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """What a wrong answer costs in USD. Requests below the threshold go to the large model only where the answers that
    it gets right are shown to be worth its price; left out, where it is shown to be right more often. With it the
    candidate or plan of the least expected loss goes live."""
    labels: Literal["gold", "large"] = "gold"
    """Who labelled the validation rows: people, or the large model (`smallfirst label`); shown in the certificate."""
    second_look_after: int | None = pydantic.Field(default=None, ge=1)
    """Texts in shadow after which the certificate is looked for once more, by itself, at four fifths of the level; the
    run then spends one fifth. `smallfirst learn` sets 1000. Needs `labels: large` and `max_error` as the only limit."""
    monitor: MonitorSettings = MonitorSettings()
    """How closely the guarantee is monitored after go-live."""
    judge: Literal["large", "person"] = "large"
    """Whose answer an audited one is compared with."""

    @pydantic.model_validator(mode="after")
    def _stages_exist(self) -> RoutingConfig:
        check_stages(self.policies, self.ahead)
        return self


class TaskFile(Record):
    """The settings of one task."""

    name: str = pydantic.Field(default="", pattern=NAME_PATTERN)
    """Short name, also of the served model; left out: that of the folder, in lower case with dashes."""
    kind: str = DEFAULT_KIND
    """`classify`: labels · `extract`: JSON fields · `answer`: short answers · `chat`: open text, your own scorers ·
    `call`: function calls; or the name of a kind that an installed package registers."""
    about: str = ""
    """One sentence on the job, shown to general models."""
    data: DataFiles
    """Where the rows are."""
    ladder: tuple[str, ...] | None = None
    """The candidates to train and measure (docs/tasks.md says which); no other is fitted. Left out: all that suit,
    those on the larger encoder unless they can gain no more than `accuracy_within`; on labels `small` only if
    `small.base`, `small.training` or `routing.small` asks for it."""
    minutes: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """How long a run may take: candidates of the ladder are then chosen by what they promise and how long they take
    here. Left out: every one that may still win is trained to the end."""
    small: SmallConfig = SmallConfig()
    """The small model."""
    large: LargeConfig | None = None
    """The large model; without it nothing can be escalated or compared."""
    gate: Gate = Gate(accuracy_at_least=0.8)
    """Thresholds that a candidate must meet to answer every request. The default is a measure: it lets nobody do so."""
    routing: RoutingConfig = RoutingConfig()
    """The Router."""
    register_to: str = ""
    """Three-level model name, `catalog.schema.model`; left out: `main.default.` and the task's name."""
    prices: PriceBook = PriceBook()
    """Machine price and token prices."""
    requests_per_month: int = pydantic.Field(default=1_000_000, ge=1)
    """Requests per month, assumed in the report."""
    folder: Path = Path()
    """Folder of the file; set when it is read."""
    settings: dict[str, Any] = {}
    """The kind's own settings, which a file writes beside the others (see the fields of its record in
    `smallfirst.tasks`)."""

    @property
    def sets_gate(self) -> bool:
        """True if the file sets a gate: the default is a measure, and lets nobody answer alone."""
        return "gate" in self.model_fields_set

    @property
    def may_have_no_answer(self) -> bool:
        """True if a model of its kind may have no answer to a request, so that none answers every one."""
        return TASK_KINDS.get(self.kind).no_answer is not None

    @property
    def binds_answers(self) -> bool:
        """True if the file sets a guarantee and a large model: what it does not cover goes there."""
        return self.large is not None and "guarantee" in self.routing.model_fields_set

    @property
    def tells_foreign_requests(self) -> bool:
        """True if foreign requests are told apart: there is a large model for them, or the file asks for it.

        It asks with `routing.domain`, `routing.out_of_scope`, `data.open_ended`, `data.out_of_scope_label` or
        `max_foreign_share`. Where nobody could answer them, telling them apart would only refuse own requests. Function
        calls are told by their functions.
        """
        if self.may_have_no_answer:
            return False
        routing, data = self.routing, self.data
        asked = routing.model_fields_set & {"domain", "out_of_scope"} or data.open_ended or data.out_of_scope_label
        wanted = self.large is not None or asked or routing.guarantee.max_foreign_share > 0
        return routing.domain.mode != "off" and bool(wanted)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = {name: value for name, value in values.items() if name not in cls.model_fields}
        rest = {name: value for name, value in values.items() if name in cls.model_fields}
        name = rest.setdefault("name", task_name(Path(rest.get("folder", ""))))
        rest.setdefault("register_to", registry_name(str(name)))
        return rest | {"settings": {**values.get("settings", {}), **own}}

    @pydantic.field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        try:
            TASK_KINDS.check(kind)
        except ConfigError as error:
            raise ValueError(error.args[0]) from None
        return kind

    @pydantic.field_validator("settings")
    @classmethod
    def _settings_suit_the_kind(cls, settings: dict[str, Any], info: pydantic.ValidationInfo) -> dict[str, Any]:
        if "kind" not in info.data:
            return settings
        name, kind = info.data["kind"], TASK_KINDS.get(info.data["kind"])
        foreign = [setting for setting in settings if setting not in kind.setting_names()]
        owners = {s: [n for n, other in TASK_KINDS if s in other.setting_names()] for s in foreign}
        lines = [f"{s}: a setting of kind {' or '.join(kinds)}, not of {name}" for s, kinds in owners.items() if kinds]
        own = {setting: value for setting, value in settings.items() if not owners.get(setting)}
        try:
            kind.model_validate({"kind": name, "name": "any", **own})
        except pydantic.ValidationError as error:
            # The rows may supply what is missing.
            lines += explain_errors(kind, error, partial=True, names=cls.model_fields, whole=cls)
        if lines:
            raise PydanticCustomError(SETTINGS_PROBLEM, "{lines}", {"lines": "\n  ".join(lines)})
        return settings

    @pydantic.field_validator("ladder")
    @classmethod
    def _ladder_names_candidates(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        known = CANDIDATES.names()
        for name in names or ():
            if name not in known:
                raise ValueError(f'"{name}" is no candidate{did_you_mean(name, known)}; known: {", ".join(known)}')
        if names == ():
            raise ValueError(f"name a candidate: {', '.join(known)}")
        return names

    @pydantic.model_validator(mode="after")
    def _routing_names_candidates(self) -> TaskFile:
        names, routing = candidate_names(), self.routing
        on_ladder = names if self.ladder is None else tuple(name for name in names if name in self.ladder)
        last = on_ladder[-1] if self.goes_live in RULES else self.goes_live
        for place, name in (("small", last), *(("ahead", name) for name in routing.ahead)):
            if name not in names:
                raise ValueError(f'routing.{place}: no candidate "{name}" can go live{did_you_mean(name, names)}')
            if name not in on_ladder:
                raise ValueError(f"routing.{place}: {name} is not on the ladder: add it to ladder")
        for name in routing.ahead:
            if names.index(name) >= names.index(last):
                raise ValueError(f"routing.ahead: {name} is not smaller than {last}, which routing.small names")
        return self

    @pydantic.model_validator(mode="after")
    def _second_look_can_be_taken(self) -> TaskFile:
        if self.routing.second_look_after is not None and (why := self.why_no_second_look):
            raise ValueError(f"routing.second_look_after: {why}; leave it out")
        return self

    @pydantic.model_validator(mode="after")
    def _what_is_promised_is_kept(self) -> TaskFile:
        guarantee = self.routing.guarantee
        if guarantee.most_of_group or guarantee.max_error_of:
            name = "most_of_group" if guarantee.most_of_group else "max_error_of"
            raise ValueError(f"routing.guarantee.{name}: a run sets it, from its model and functions; leave it out")
        other = not guarantee.limits_errors_alone or guarantee.per_group or guarantee.max_foreign_share
        if self.may_have_no_answer and (other or self.routing.ahead):
            where = "guarantee" if other else "ahead"
            raise ValueError(f"routing.{where}: kind {self.kind} promises max_error alone, of one model; leave it out")
        return self

    @pydantic.model_validator(mode="after")
    def _out_of_scope_is_no_label(self) -> TaskFile:
        label, own = self.data.out_of_scope_label, {self.settings.get("other"), *self.settings.get("labels", ())}
        if label is not None and label in own:
            raise ValueError(f'data.out_of_scope_label: "{label}" is in labels or other: is it answered, or foreign?')
        return self

    @property
    def why_no_second_look(self) -> str:
        """Why what is drafted in shadow cannot certify; empty if it can."""
        routing, guarantee = self.routing, self.routing.guarantee
        if self.may_have_no_answer:
            return "calls count by whole conversations, and in shadow single texts are counted"
        if routing.labels != "large":
            return "right is what people say, and in shadow only the large model answers"
        if not guarantee.limits_errors_alone or guarantee.per_group:
            return "in shadow only max_error over all answers is counted"
        if routing.ahead or self.data.columns.group:
            return "requests in shadow belong to no group, and one model drafts"
        return ""

    @property
    def goes_live(self) -> str:
        """The candidate that task.yaml names to go live, or the rule that chooses it, one of RULES."""
        return self.routing.small or BEST

    def with_max_usd(self, max_usd: float) -> TaskFile:
        """Return the file with another `large.max_usd`. Raise ConfigError if it is not above 0, or nothing is asked."""
        if self.large is None or max_usd <= 0:
            wrong = "it must be above 0" if self.large else "task.yaml names no large model"
            raise ConfigError(f"--max-usd {max_usd:g}: {wrong}", hint="smallfirst run without --max-usd")
        return self.model_copy(update={"large": self.large.model_copy(update={"max_usd": max_usd})})

    def with_minutes(self, minutes: float) -> TaskFile:
        """Return the file with another `minutes`. Raise ConfigError if it is not above 0."""
        if not 0 < minutes < math.inf:
            raise ConfigError(f"--minutes {minutes:g}: it must be above 0", hint="smallfirst run --minutes 20")
        return self.model_copy(update={"minutes": minutes})

    def path(self, relative: Path) -> Path:
        """Return a path of the file, resolved against its folder."""
        return relative if relative.is_absolute() else self.folder / relative


def read_task_file(task: str | Path | TaskFile) -> TaskFile:
    """Return the record of a task.yaml, or of the one in a folder; one that was read already is returned as it is.

    Raise ConfigError naming every wrong setting.
    """
    if isinstance(task, TaskFile):
        return task
    path = Path(task)
    if path.is_dir():
        path = path / "task.yaml"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="smallfirst init   writes a commented task.yaml")
    values = {**read_yaml(path), "folder": str(path.parent)}
    kind = str(values.get("kind", DEFAULT_KIND))
    if kind in TASK_KINDS.names():
        values = TASK_KINDS.get(kind).expand_settings(values, path.parent)
    return parse_record(TaskFile, values, where=str(path))
