"""What `foundation_model` raises, under the names that code written for Databricks catches.

Each is a SmallfirstError too: a place, a rule and the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple, Self

from smallfirst.errors import ConfigError, SmallfirstError


class DatabricksGenAIError(SmallfirstError):
    """Any error of `foundation_model`."""

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)


class DatabricksModelTrainingRequestError(DatabricksGenAIError):
    """A request that contradicts itself, or that could not be carried out."""


class DatabricksGenAIResponseError(DatabricksGenAIError):
    """What was asked for is not there."""


class DatabricksGenAIConfigError(DatabricksGenAIError):
    """Not raised here, where every wrong value is a ValidationError; kept so that `except` clauses still resolve."""


class InvalidArgument(NamedTuple):
    """One argument that breaks a rule."""

    parameter: str
    rule: str
    """With the value that broke it."""
    next_step: str


class ValidationError(DatabricksGenAIError, ConfigError):
    """Arguments that cannot be used; `wrong` holds all of them."""

    exit_code = 2

    def __init__(self, message: str = "", *, hint: str | None = None, wrong: Sequence[InvalidArgument] = ()) -> None:
        super().__init__(message, hint=hint)
        self.wrong = tuple(wrong)

    @classmethod
    def of(cls, wrong: Sequence[InvalidArgument]) -> Self:
        """The error of at least one wrong argument."""
        if len(wrong) == 1:
            (only,) = wrong
            return cls(f"{only.parameter}: {only.rule}", hint=only.next_step, wrong=wrong)
        lines = [f"  {w.parameter}: {w.rule}\n    next: {w.next_step}" for w in wrong]
        return cls("\n".join([f"{len(wrong)} arguments cannot be used:", *lines]), wrong=wrong)


class MAPIException(DatabricksGenAIError):
    """Not raised here, where no service answers; kept so that `except` clauses still resolve."""

    def __init__(self, status: HTTPStatus, message: str = "", description: str | None = None) -> None:
        super().__init__(f"{message} ({description})" if description else message)
        self.status, self.message, self.description = status, message, description


class MultiMAPIException(MAPIException):
    """Not raised here; several at once."""

    def __init__(self, errors: Sequence[MAPIException]) -> None:
        status = errors[0].status if errors else HTTPStatus.INTERNAL_SERVER_ERROR
        super().__init__(status, "\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


class RunConfigException(MAPIException):
    """Not raised here, where every wrong value is a ValidationError; kept so that `except` clauses still resolve."""
