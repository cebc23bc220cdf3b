"""Unmodified clients against an upstream, directly and through the proxy; runs in an environment of its own.

    python proxy_clients.py DIRECT PROXIED       # ports of clients_upstream and of the proxy in front of it

Prints a line of JSON for each call: client, version, what was called, both outcomes, and whether they are equal.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from typing import Any

QUESTION = "Where is my card?"
MODEL = "gpt-4o"
Call = Callable[[], Any]
CALLS: list[tuple[str, str, Call]] = []
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": WEATHER}}
ASKED: Any = [{"role": "user", "content": QUESTION}]


def call(client: str, what: str) -> Callable[[Call], Call]:
    """Register a call of a client."""

    def add(function: Call) -> Call:
        CALLS.append((client, what, function))
        return function

    return add


def openai_client() -> Any:
    import openai

    return openai.OpenAI(max_retries=0)


def person() -> Any:
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    return Person


@call("openai", "chat completion")
def _() -> Any:
    return openai_client().chat.completions.create(model=MODEL, messages=ASKED).to_dict()


@call("openai", "chat completion, raw response with its headers")
def _() -> Any:
    raw = openai_client().chat.completions.with_raw_response.create(model=MODEL, messages=ASKED)
    return [raw.headers["x-request-id"], raw.http_response.status_code, raw.parse().to_dict()]


@call("openai", "chat completion, streamed with usage")
def _() -> Any:
    options: Any = {"include_usage": True}
    pieces = openai_client().chat.completions.create(model=MODEL, messages=ASKED, stream=True, stream_options=options)
    return [piece.to_dict() for piece in pieces]


@call("openai", "chat completion with a tool, streamed by the helper")
def _() -> Any:
    with openai_client().chat.completions.stream(model=MODEL, messages=ASKED, tools=[TOOL]) as stream:
        return [[event.type for event in stream], stream.get_final_completion().to_dict()]


@call("openai", "chat completion, parsed")
def _() -> Any:
    done = openai_client().chat.completions.parse(model=MODEL, messages=ASKED, response_format=person())
    return done.choices[0].message.parsed.model_dump()


@call("openai", "chat completion with an image, asynchronous")
def _() -> Any:
    import openai

    image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000}}
    content: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}]

    async def ask() -> Any:
        return (await openai.AsyncOpenAI().chat.completions.create(model=MODEL, messages=content)).to_dict()

    return asyncio.run(ask())


@call("openai", "response")
def _() -> Any:
    return openai_client().responses.create(model=MODEL, input=QUESTION).to_dict()


@call("openai", "response, streamed")
def _() -> Any:
    return [event.to_dict() for event in openai_client().responses.create(model=MODEL, input=QUESTION, stream=True)]


@call("openai", "response, parsed")
def _() -> Any:
    return openai_client().responses.parse(model=MODEL, input=QUESTION, text_format=person()).output_parsed.model_dump()


@call("openai", "response with a tool, streamed by the helper")
def _() -> Any:
    tool: Any = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    with openai_client().responses.stream(model=MODEL, input=QUESTION, tools=[tool]) as stream:
        return [[event.type for event in stream], stream.get_final_response().to_dict()]


@call("openai", "embeddings")
def _() -> Any:
    return openai_client().embeddings.create(model="text-embedding-3-small", input=["a", "b"]).to_dict()


@call("openai", "upload of a file")
def _() -> Any:
    return openai_client().files.create(file=("rows.jsonl", b"{}\n" * 50_000), purpose="batch").to_dict()


def langchain() -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=MODEL, max_retries=0)


@call("langchain-openai", "invoke")
def _() -> Any:
    return langchain().invoke(QUESTION).content


@call("langchain-openai", "stream")
def _() -> Any:
    return [piece.content for piece in langchain().stream(QUESTION)]


@call("langchain-openai", "bind_tools")
def _() -> Any:
    return langchain().bind_tools([TOOL]).invoke(QUESTION).tool_calls


@call("langchain-openai", "with_structured_output")
def _() -> Any:
    return langchain().with_structured_output(person()).invoke(QUESTION).model_dump()


@call("langchain-openai", "invoke over responses")
def _() -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=MODEL, use_responses_api=True).invoke(QUESTION).content


def llama_index() -> Any:
    from llama_index.llms.openai import OpenAI

    return OpenAI(model=MODEL, max_retries=0, api_base=os.environ["OPENAI_BASE_URL"])


@call("llama-index-llms-openai", "complete")
def _() -> Any:
    return llama_index().complete(QUESTION).text


@call("llama-index-llms-openai", "stream_complete")
def _() -> Any:
    return [piece.delta for piece in llama_index().stream_complete(QUESTION)]


@call("llama-index-llms-openai", "structured_predict")
def _() -> Any:
    from llama_index.core.prompts import PromptTemplate

    return llama_index().structured_predict(person(), PromptTemplate(QUESTION)).model_dump()


def _agent() -> Any:
    from agents import Agent, function_tool, set_default_openai_client, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    set_default_openai_client(AsyncOpenAI(max_retries=0), use_for_tracing=False)

    @function_tool
    def weather(city: str, days: int) -> str:
        """Tell the weather."""
        return f"sun in {city} for {days} days"

    return Agent(name="desk", model=MODEL, instructions="Help.", tools=[weather])


@call("openai-agents", "run with a tool")
def _() -> Any:
    from agents import Runner

    done = asyncio.run(Runner.run(_agent(), QUESTION))
    return [done.final_output, [item.type for item in done.new_items]]


@call("openai-agents", "run_streamed with a tool")
def _() -> Any:
    from agents import Runner

    async def ask() -> Any:
        run = Runner.run_streamed(_agent(), QUESTION)
        return [[event.type async for event in run.stream_events()], run.final_output]

    return asyncio.run(ask())


@call("litellm", "completion")
def _() -> Any:
    import litellm

    return litellm.completion(model=f"openai/{MODEL}", messages=ASKED).choices[0].message.content


@call("litellm", "completion, streamed")
def _() -> Any:
    import litellm

    pieces = litellm.completion(model=f"openai/{MODEL}", messages=ASKED, stream=True)
    return [piece.choices[0].delta.content for piece in pieces]


@call("litellm", "responses")
def _() -> Any:
    import litellm

    return litellm.responses(model=f"openai/{MODEL}", input=QUESTION).output[0].content[0].text


@call("instructor", "create with a response model")
def _() -> Any:
    import instructor

    made = instructor.from_openai(openai_client()).chat.completions.create(
        model=MODEL, messages=ASKED, response_model=person()
    )
    return made.model_dump()


@call("dspy", "Predict")
def _() -> Any:
    import dspy

    with dspy.context(lm=dspy.LM(f"openai/{MODEL}", cache=False, num_retries=0), adapter=dspy.JSONAdapter()):
        return dspy.Predict("question -> answer")(question=QUESTION).answer


def _anthropic() -> Any:
    import anthropic

    return anthropic.Anthropic(max_retries=0)


@call("anthropic", "message")
def _() -> Any:
    return _anthropic().messages.create(model="claude", max_tokens=99, messages=ASKED).to_dict()


@call("anthropic", "message, streamed")
def _() -> Any:
    with _anthropic().messages.stream(model="claude", max_tokens=99, messages=ASKED) as stream:
        return [[event.type for event in stream], stream.get_final_message().to_dict()]


@call("anthropic", "message with a tool")
def _() -> Any:
    tool: Any = {"name": "weather", "input_schema": WEATHER}
    return _anthropic().messages.create(model="claude", max_tokens=99, messages=ASKED, tools=[tool]).to_dict()


def outcome(function: Call, port: int) -> str:
    """What a call gives at a port, or its error."""
    root = f"http://127.0.0.1:{port}"
    os.environ |= {"OPENAI_BASE_URL": f"{root}/v1", "OPENAI_API_BASE": f"{root}/v1", "ANTHROPIC_BASE_URL": root}
    os.environ |= {"OPENAI_API_KEY": "sk-test", "ANTHROPIC_API_KEY": "sk-test"}
    try:
        return json.dumps(function(), default=str)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace(str(port), "PORT")


def main(direct: int, proxied: int) -> None:
    for client, what, function in CALLS:
        outcomes = {"direct": outcome(function, direct), "proxied": outcome(function, proxied)}
        failed = any(text[:1] not in '[{"' for text in outcomes.values())
        equal = len(set(outcomes.values())) == 1
        row = {"client": client, "version": importlib.metadata.version(client), "what": what, "failed": failed}
        print(json.dumps({**row, "equal": equal, **{key: text[:300] for key, text in outcomes.items()}}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
