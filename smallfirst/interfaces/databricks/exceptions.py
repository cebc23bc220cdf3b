"""The exceptions of `foundation_model`, named as in databricks-genai so that `except` clauses keep working."""

from __future__ import annotations

from smallfirst.errors import ConfigError, SmallfirstError


class DatabricksGenAIError(SmallfirstError):
    """Base class of the errors of `foundation_model`."""


class DatabricksModelTrainingRequestError(DatabricksGenAIError):
    """A request contradicts itself or cannot be carried out."""


class DatabricksGenAIResponseError(DatabricksGenAIError):
    """A requested run does not exist."""


class ValidationError(DatabricksGenAIError, ConfigError):
    """Arguments cannot be used; the message lists every one of them."""

    exit_code = 2
