"""OpenAI's request parameters: which are read, which have no effect here, and which are refused, and why.

Of OpenAI's parameters some are read, some have no effect on a narrow model and are ignored, and some would change what
the answer means and are refused by name. A name outside these lists is a spelling mistake: it is refused with a
suggestion, as OpenAI does. The price: a parameter that OpenAI adds tomorrow is refused until it is listed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from smallfirst.errors import did_you_mean
from smallfirst.serving.openai.errors import ApiError

CHAT_IGNORED = frozenset(
    {
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "top_p",
        "store",
        "parallel_tool_calls",
        "service_tier",
        "reasoning_effort",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "verbosity",
    }
)
"""Parameters of a chat that are accepted and have no effect."""
COMPLETION_IGNORED = frozenset({"frequency_penalty", "presence_penalty", "logit_bias", "top_p"})
"""Those of a completion."""
EMBEDDING_IGNORED = frozenset({"user"})
"""Those of embeddings and scores."""

Refused = Mapping[str, tuple[str, tuple[Any, ...]]]
"""By name: why, and which values ask for nothing and may come."""

_NO_TOOLS = "models here answer in text and call no tools"
_NO_AUDIO = "models here answer in text"
CHAT_REFUSED: Refused = {
    "tools": (_NO_TOOLS, ([],)),
    "tool_choice": (_NO_TOOLS, ("none", "auto")),
    "functions": (_NO_TOOLS, ([],)),
    "function_call": (_NO_TOOLS, ("none", "auto")),
    "modalities": (_NO_AUDIO, (["text"],)),
    "audio": (_NO_AUDIO, ()),
    "prediction": ("there is no predicted output here", ()),
    "moderation": ("nothing is moderated here", ()),
    "web_search_options": ("nothing is fetched from the web", ({},)),
}
"""Parameters of a chat that are refused."""
COMPLETION_REFUSED: Refused = {
    "echo": ("the prompt is not repeated", (False,)),
    "suffix": ("text is continued, not filled in", ()),
    "best_of": ("every answer that is made is given", (1,)),
}
"""Those of a completion."""
EMBEDDING_REFUSED: Refused = {"dimensions": ("a model's vectors have one length", ())}
"""Those of embeddings and scores."""


def check_parameters(
    values: Mapping[str, object],
    read: Iterable[str],
    ignored: frozenset[str] = CHAT_IGNORED,
    refused: Refused = CHAT_REFUSED,
) -> None:
    """Nothing if all names are known here and none is refused. Raises WireError 400 for the first that is not."""
    known = [*read, *ignored, *refused]
    for name, value in values.items():
        if name in refused:
            why, harmless = refused[name]
            # By type as well: 1 equals True, and neither is what the other asks for.
            if not any(type(value) is type(one) and value == one for one in harmless):
                raise ApiError(400, f'"{name}" is not supported here: {why}.', param=name, code="unsupported_parameter")
        elif name not in known:
            shown = name[:64]
            near = did_you_mean(shown, known) or "."
            raise ApiError(400, f'Unknown parameter: "{shown}"{near}', param=shown, code="unknown_parameter")
