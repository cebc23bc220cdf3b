"""Errors in OpenAI's format."""

from __future__ import annotations

from collections.abc import Iterable

import pydantic
from starlette.responses import JSONResponse

from smallfirst.errors import did_you_mean
from smallfirst.records import field_names_at
from smallfirst.serving.response_head import header_value


class ApiError(Exception):
    """An error response in the format that OpenAI's clients understand."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """`kind` is OpenAI's `error.type`; `param` the field at fault."""
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.code = code
        self.headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, {name: header_value(text) for name, text in self.headers.items()})


def validation_error(error: pydantic.ValidationError, kind: type[pydantic.BaseModel] | None = None) -> ApiError:
    """Return one ApiError 400 with the first five broken rules, without repeating what was sent.

    With the `kind` that was read, an unknown field is called so, with the nearest known one.
    """
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    places, rules = [_place(problem["loc"]) for problem in problems], []
    for place, problem in zip(places, problems, strict=True):
        said = problem["msg"].removeprefix("Value error, ")
        rules.append(f"{place}: {said}" if place else said)
        if kind is not None and problem["type"] == "extra_forbidden":
            *path, name = problem["loc"]
            rules[-1] = f'Unknown parameter: "{place}"{did_you_mean(str(name)[:64], field_names_at(kind, tuple(path)))}'
    more = f"; and {len(rules) - 5} more" if len(rules) > 5 else ""
    unknown = kind is not None and problems[0]["type"] == "extra_forbidden"
    code = "unknown_parameter" if unknown else str(problems[0]["type"])
    return ApiError(400, "; ".join(rules[:5]) + more, param=places[0] or None, code=code)


def _place(path: tuple[int | str, ...]) -> str:
    """Return a place such as `questions[0].choices`; alternatives of a union, written `<name>`, are no part of it."""
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in path if not str(part).startswith("<")
    ]
    return "".join(parts).removeprefix(".")


def model_not_found(name: str, served: Iterable[str]) -> ApiError:
    """Return the ApiError 404 for a name that is not served, with the nearest served name and the list of them."""
    known = sorted(served)
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    shown = name[:128]
    near = did_you_mean(shown, known) or "."
    return ApiError(
        404,
        f'The model "{shown}" is not served here{near} Served: {", ".join(known[:20])}{more}.',
        param="model",
        code="model_not_found",
    )
