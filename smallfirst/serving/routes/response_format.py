"""Whether a finished answer has the form that was asked for: engines are asked for it, and checked all the same.

An engine that cannot apply a grammar may drop it and write on; its answer must not reach a client that will parse it.
"""

from __future__ import annotations

import json

from smallfirst.errors import BadAnswer, RequestRefused
from smallfirst.models.protocol import Completion, ResponseFormat
from smallfirst.tasks.json.answers import answer_parser


def check_form(completion: Completion, wanted: ResponseFormat | None) -> None:
    """Nothing if the answer has the form, or was cut off for its length.

    Raises RequestRefused if the model answers with labels, which have a form of their own, and BadAnswer if it should
    have kept to the form.
    """
    if wanted is None or completion.finish_reason == "length" or _has(completion.text, wanted):
        return
    if completion.alternatives:
        raise RequestRefused("The answers of this model are labels, which are not of the response_format asked for.")
    raise BadAnswer(f"{completion.answered_by} did not keep to the response_format asked for")


def _has(text: str, wanted: ResponseFormat) -> bool:
    schema = {"type": "object"} if wanted.kind == "json_object" else wanted.json_schema
    return answer_parser(json.dumps(schema, sort_keys=True)).keeps(text)
