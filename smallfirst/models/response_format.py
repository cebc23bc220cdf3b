"""Response formats: a schema is compiled before an answer is generated, and the finished answer is checked against it.

Some engines drop a grammar that they cannot apply, or crash on one, without a sign in the reply.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from smallfirst.base.errors import BadAnswer, ConfigError, RequestRefused
from smallfirst.models.generation.grammar import Grammar, lark_grammar, with_number_bounds
from smallfirst.models.protocol import Bill, Completion, ResponseFormat, unless_answered
from smallfirst.tasks.json.answers import answer_parser
from smallfirst.tasks.json.schema import closed_schema, grammar_problem

MAX_COMPILED = 64
"""Compiled schemas kept in memory, and grammars of requests' own schemas for each local model."""
COMPILE_TIMEOUT_S = 10.0
"""Seconds after which a local model refuses a schema, the wait for those compiled before it included."""
SHOWN_CHARACTERS = 200
"""Characters of a wrong answer that its error message quotes."""


class OutputFormat(NamedTuple):
    """The format that an engine in another process is asked for."""

    grammar: str | None
    """In llama.cpp's grammar language; None for free text."""
    accepts: Callable[[str], bool]
    choices: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None

    async def allows(self, text: str) -> bool:
        """Return `accepts(text)`, of JSON in a thread. Raise TooManySteps."""
        return self.accepts(text) if self.schema is None else await asyncio.to_thread(self.accepts, text)


FREE_TEXT = OutputFormat(None, lambda text: True)


class ResponseGrammars:
    """The grammars of one local model: that of its task, or else those of the requests' own schemas.

    These are compiled one by one in a thread; the least used are dropped.
    """

    def __init__(self, own: Mapping[str, Any] | None, tokenizer: Any, *, name: str, writes_json: bool = True) -> None:
        """Compile `own`, the schema of every answer, if there is one. Raise ConfigError if it has no grammar.

        Without `writes_json` a `json_object` is refused: a model that learnt other answers fills it with anything until
        its tokens run out.
        """
        self._own, self._name, self._writes_json = own, name, writes_json
        self._own_grammar = Grammar.compile(own, tokenizer) if own is not None else None
        self._tokenizer, self._requested = tokenizer, OrderedDict[str, Grammar]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    async def grammar_for(self, wanted: ResponseFormat | None) -> Grammar | None:
        """Return the answer's grammar, None for free text. Raise RequestRefused if there is none, or another."""
        if self._own is not None:
            if wanted is not None and wanted.kind == "json_schema" and not _same(wanted.json_schema, self._own):
                raise RequestRefused(
                    f"response_format: the answers of {self._name} follow the schema of its task, and this is another "
                    "one; leave response_format out, or ask for a json_object"
                )
            return self._own_grammar
        if wanted is None:
            return None
        if wanted.kind == "json_object" and not self._writes_json:
            raise RequestRefused(
                f"response_format: {self._name} was trained on answers that are no JSON objects; leave response_format "
                "out, or name the fields by a json_schema"
            )
        return await self._compiled(wanted.answer_schema)

    async def _compiled(self, schema: Mapping[str, Any]) -> Grammar:
        # Not the canonical form: the order of properties is the order in which they are written.
        key = json.dumps(schema)
        if key not in self._requested:
            loop = asyncio.get_running_loop()
            compiling = loop.run_in_executor(self._thread, Grammar.compile, schema, self._tokenizer)
            try:
                self._requested[key] = await asyncio.wait_for(compiling, COMPILE_TIMEOUT_S)
            except ConfigError as error:
                raise RequestRefused(f"response_format: {error.args[0]}") from None
            except TimeoutError:
                rule = f"it takes more than {COMPILE_TIMEOUT_S:g} s to compile"
                raise RequestRefused(f"response_format: no answer can be written under this schema: {rule}") from None
            if len(self._requested) > MAX_COMPILED:
                self._requested.popitem(last=False)
        self._requested.move_to_end(key)
        return self._requested[key]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def json_format(schema: Mapping[str, Any]) -> OutputFormat:
    """Return the format of JSON under a schema. Raise ConfigError if no answer can be generated under it."""
    if problem := _grammar_problem(written := json.dumps(schema)):
        raise ConfigError(f"no answer can be written under this schema: {problem}")
    return OutputFormat(lark_grammar(schema), answer_parser(written).keeps, schema=schema)


async def requested_format(wanted: ResponseFormat | None) -> OutputFormat:
    """Return the format that a request asks for. Raise RequestRefused if no answer can be generated in it."""
    if wanted is None:
        return FREE_TEXT
    try:
        return await asyncio.to_thread(json_format, wanted.answer_schema)
    except ConfigError as error:
        raise RequestRefused(str(error)) from None


async def require_format(output_format: OutputFormat, completion: Completion, bill: Bill | None = None) -> Completion:
    """Return a generated answer in the format; JSON that was cut off for its length too. Raise BadAnswer.

    What is not returned goes to `bill`.
    """
    with unless_answered(bill, lambda _: completion):
        n_choices, is_cut = len(output_format.choices), completion.finish_reason == "length"
        if await output_format.allows(completion.text) or (is_cut and not n_choices):
            return completion
        what = f"none of the {n_choices} answers" if n_choices else "what its schema forbids"
        raise BadAnswer(
            f"{completion.answered_by} wrote {what}: {completion.text[:SHOWN_CHARACTERS]!r}",
            hint="raise max_tokens, the answer was cut off" if is_cut else None,
        )


async def check_response_format(completion: Completion, wanted: ResponseFormat | None) -> None:
    """Accept an answer in the format asked for, or cut off. Raise RequestRefused for labels, else BadAnswer."""
    if wanted is None or completion.finish_reason == "length":
        return
    parser = answer_parser(json.dumps(wanted.answer_schema, sort_keys=True))
    if await asyncio.to_thread(parser.keeps, completion.text):
        return
    if completion.alternatives:
        raise RequestRefused("The answers of this model are labels, which are not of the response_format asked for.")
    raise BadAnswer(f"{completion.answered_by} did not keep to the response_format asked for")


def _same(schema: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    if dict(schema) == dict(own):
        return True
    try:
        return bool(closed_schema(dict(schema)) == dict(own))
    except (ConfigError, ValueError, TypeError, KeyError, AttributeError):
        return False


@functools.lru_cache(maxsize=MAX_COMPILED)
def _grammar_problem(schema: str) -> str | None:
    return grammar_problem(with_number_bounds(json.loads(schema)))
