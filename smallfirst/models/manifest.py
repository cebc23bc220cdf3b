"""What lies beside the weights in a model folder: the manifest, the check of int8, and which rows it was fitted on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from smallfirst.base.errors import ConfigError, DataError, Problem
from smallfirst.base.files import files_sha256, sha256, write_atomically
from smallfirst.base.records import Record, fingerprint
from smallfirst.base.stats.intervals import Estimate
from smallfirst.data.dataset import Dataset, Example, fold_text
from smallfirst.models.confidence import Calibration
from smallfirst.tasks import AnyTask

MANIFEST = "smallfirst.json"
INT8_FILE = "int8.json"
TRAINED_ON = "trained_on.json"
ADAPTER_CONFIG = "adapter_config.json"
"""The file that marks a folder of LoRA adapters saved by peft."""
BASE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""The files of a base model that loading may read: weights, configuration, tokenizer, chat templates."""


class Manifest(Record):
    """The description of a model, written last into its folder, so a folder without one is not a model."""

    kind: Literal[
        "label_tokens",
        "generative",
        "chat",
        "text",
        "words",
        "encoder",
        "tagger",
        "reader",
        "blend",
        "joined",
        "caller",
    ]
    """`label_tokens`: a causal model that scores one token a label · `generative`: one that generates its answers ·
    `chat`: one prompted with whole conversations through its own chat template · `text`: one that continues text ·
    `words`, `encoder`: linear models · `tagger`: an encoder that marks fields in a text · `reader`: one that
    marks the answer to a question in its context · `blend`: several of these for labels, their probabilities mixed ·
    `joined`: a tagger for some fields and a language model for the others · `caller`: one that chooses a function call
    among the values that a conversation names."""
    task: AnyTask
    base: str
    """Base model by name; empty for `words`."""
    estimator: Literal["logistic_regression", "linear_svm"] = "logistic_regression"
    """How a linear model was fitted (`words`, `encoder`)."""
    base_sha256: str = ""
    """Of all files of the base it was trained on (`base_sha256`); empty in manifests of before 2026-11-27."""
    label_tokens: tuple[int, ...] = ()
    """Token id of each label, in label order (`label_tokens` only)."""
    temperature: float = 1.0
    """Divides the label log-probabilities before they are reported; fitted on validation rows."""
    label_threshold: float = 0.5
    """Least probability of a label that is answered, where a text may have several; chosen on validation rows."""
    calibration: Calibration = Calibration()
    """From the tokens of a generated answer, or the labels of a list, to the probability that it is right."""
    member_weights: dict[str, float] = {}
    """How much each member counts, by the name of its folder below `members` (`blend` only)."""
    system: str = ""
    """System message of every training row, with which a request without one is answered (`chat` only)."""
    writes_json: bool = True
    """False if it was trained on answers that are no JSON objects: asked for a json_object, it refuses."""
    max_tokens: int = 512
    """Longest prompt; the middle of a longer text is cut."""
    weights_fingerprint: str = ""
    """Changes with the weights."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a model folder."""
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2).encode())


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a model folder. Raise ConfigError if it has none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{folder} has no {MANIFEST}, so it is not a model of smallfirst")
    return Manifest.load(path)


def base_sha256(base: Path) -> str:
    """Return the SHA-256 of a base model's folder (all files that loading may read) or GGUF file; empty without any."""
    if base.is_file():
        return sha256(base)
    found = {path for pattern in BASE_FILES for path in base.rglob(pattern) if path.is_file() and path.name != MANIFEST}
    shown = (path for path in found if not any(part.startswith(".") for part in path.relative_to(base).parts))
    return files_sha256(base, shown)


def require_base(folder: Path, manifest: Manifest, base: Path) -> None:
    """Raise ConfigError if the adapter in `folder` was trained on another base than the one at `base`."""
    if manifest.base_sha256 and (found := base_sha256(base)) != manifest.base_sha256:
        raise ConfigError(
            f"{folder}: this adapter was trained on {manifest.base} with the files of sha256 "
            f"{manifest.base_sha256[:12]}…; {base} has {found[:12] or 'none'}…, and an adapter is served on its own "
            "base only",
            hint=f"copy the folder of {manifest.base} from where it was trained to {base}, or train again on this one",
        )


class Int8Check(Record):
    """How int8 arithmetic changed a model's answers on some rows."""

    weights_fingerprint: str
    """Of the weights that were checked."""
    agreement: Estimate
    """Share of rows with the same likeliest label."""
    difference: Estimate
    """Accuracy in int8 minus accuracy in the model's own precision, same rows."""
    kept: bool
    """True if the model is read in int8 from now on, where the processor supports it."""
    why: str
    """The reason, in one sentence."""


def int8_allowed(folder: Path, manifest: Manifest) -> bool:
    """Return whether a check in the folder, made for these weights, allows int8.

    What follows a dash in the manifest's fingerprint was fitted to the weights later, and does not count.
    """
    if not (folder / INT8_FILE).is_file() or not manifest.weights_fingerprint:
        return False
    found = Int8Check.load(folder / INT8_FILE)
    return found.kept and found.weights_fingerprint == manifest.weights_fingerprint.partition("-")[0]


class TrainedOn(Record):
    """The rows that a model was fitted and chosen on, as fingerprints: none of them can certify it."""

    texts: frozenset[str] = frozenset()
    """Fingerprints of the texts without case, punctuation and spacing."""
    groups: frozenset[str] = frozenset()
    """Fingerprints of the groups."""

    @classmethod
    def of(cls, rows: Dataset) -> TrainedOn:
        texts = frozenset(fingerprint(fold_text(example.asked)) for example in rows.examples)
        return cls(texts=texts, groups=frozenset(fingerprint(e.group) for e in rows.examples if e.group))

    @classmethod
    def read(cls, folder: Path) -> TrainedOn | None:
        """Return what the model in a folder was fitted and chosen on; None if that is not known."""
        path = folder / TRAINED_ON
        return cls.load(path) if path.is_file() else None

    def has_seen(self, example: Example) -> bool:
        """Return True if the row, a copy of it or its group is among these rows."""
        group = bool(example.group) and fingerprint(example.group) in self.groups
        return group or fingerprint(fold_text(example.asked)) in self.texts


def refuse_seen_rows(folder: Path, rows: Dataset) -> None:
    """Raise DataError if the model in a folder was fitted or chosen on one of these rows, a copy of it or its group.

    A certificate from such rows would promise too much: the model knows their answers.
    """
    known = TrainedOn.read(folder)
    seen = [example for example in rows.examples if known is not None and known.has_seen(example)]
    if seen:
        raise DataError(
            f"{len(seen)} of {len(rows)} rows to certify {folder.name} with are rows that it was fitted or chosen on",
            [Problem(e.path, e.line, "a copy of it, or its group, is among the model's rows") for e in seen],
            hint="smallfirst run task.yaml   fits a model without them; or take these rows out",
        )
