"""Fine-tune with DSPy on this machine through a Provider and call the resulting model.

    pip install dspy "smallfirst[databricks,train,serve]"
    python -m benchmarks.compatibility.dspy_provider FOLDER [MODEL [DURATION]]

MODEL is a base model for `fm.create`, SmolLM2-135M-Instruct unless given. DSPy's own ChatAdapter makes the rows
from a signature and 16 examples. The provider is the one of docs/foundation_model.md: it uses DSPy's extension point and patches
neither DSPy nor databricks-sdk. The registered model is then served and called by a DSPy program. Writes
benchmarks/results/dspy_provider.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS

RESULT = RESULTS / "dspy_provider.md"
REGISTER_TO = "main.claims.desk"
LABELS = {"card": "delivery", "parcel": "delivery", "refund": "money", "invoice": "money"}
FRAMES = ("where is my {}", "I have a question on the {}", "no {} yet", "the {} is wrong")
SERVE = """
import sys
from pathlib import Path
from smallfirst import load_model, serve
from smallfirst.registry import versions
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.settings import ServeSettings
name = sys.argv[1]
model = load_model(versions.resolve(f"{name}/1").folder)
serve({name: model}, ledger=Ledger(Path("ledger.db").absolute()), settings=ServeSettings(port=int(sys.argv[2])))
"""


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    model, duration = [*sys.argv[2:], *("HuggingFaceTB/SmolLM2-135M-Instruct", "2ep")[len(sys.argv) - 2 :]]
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SMALLFIRST_HOME", str(folder / "home"))
    os.environ |= {"DSPY_CACHEDIR": str(folder / "dspy")}
    os.chdir(folder)
    import dspy  # after DSPY_CACHEDIR is set

    signature = dspy.Signature("text -> department")
    lm = dspy.LM(f"openai/{REGISTER_TO}", finetuning_model=model, provider=smallfirst_provider())
    began = time.monotonic()
    job = lm.finetune(rows(dspy, signature), "chat", {"register_to": REGISTER_TO, "training_duration": duration})
    result = job.result()
    if isinstance(result, Exception):
        raise result
    seconds = time.monotonic() - began
    print(f"{job.run.name} {job.run.status.display_name} after {seconds:.0f} s: {job.run.details}")
    write_page(model, job.run, seconds, ask(dspy, signature))


def smallfirst_provider() -> Any:
    """Return a DSPy provider that trains with `foundation_model`; the job keeps the run as `run`."""
    from dspy.clients.provider import Provider

    from smallfirst import foundation_model as fm

    class SmallfirstProvider(Provider):
        def __init__(self) -> None:
            super().__init__()
            self.finetunable = True

        @staticmethod
        def finetune(job: Any, model: str, train_data: Any, train_data_format: Any, train_kwargs: Any = None) -> str:
            rows = Path("dspy_rows.jsonl")
            rows.write_text("".join(json.dumps(row) + "\n" for row in train_data), encoding="utf-8")
            job.run = fm.create(model, str(rows), **train_kwargs)
            fm.get_events(job.run, follow=True)
            if job.run.refresh().status != "COMPLETED":
                raise RuntimeError(job.run.details)
            return f"openai/{job.run.register_to}"

    return SmallfirstProvider()


def rows(dspy: Any, signature: Any) -> list[dict[str, Any]]:
    """Return chat rows as DSPy's bootstrapped fine-tuning makes them of a program's calls."""
    pairs = [(frame.format(thing), label) for frame in FRAMES for thing, label in LABELS.items()]
    adapter = dspy.ChatAdapter()
    return [
        adapter.format_finetune_data(signature, demos=[], inputs={"text": text}, outputs={"department": label})
        for text, label in pairs
    ]


def ask(dspy: Any, signature: Any) -> list[tuple[str, str]]:
    """Return (request, department) from a DSPy program that asks the registered model through the endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVE, REGISTER_TO, str(port)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    print(server.stdout.readline().strip())
    try:
        lm = dspy.LM(f"openai/{REGISTER_TO}", api_base=f"http://127.0.0.1:{port}/v1", api_key="none", cache=False)
        return [(text, department(dspy, signature, lm, text)) for text in ("the parcel again", "my refund, please")]
    finally:
        server.terminate()
        server.wait()


def department(dspy: Any, signature: Any, lm: Any, text: str) -> str:
    try:
        with dspy.context(lm=lm):
            return str(dspy.Predict(signature)(text=text).department)
    except dspy.utils.exceptions.AdapterParseError as error:
        return f"not in DSPy's form: {str(error)[:80]}"


def write_page(model: str, run: Any, seconds: float, answers: list[tuple[str, str]]) -> None:
    """Write the result as a page."""
    table = "\n".join(f"| {text} | {label} |" for text, label in answers)
    events = "\n".join(f"    {e.time:%H:%M:%S}  {e.type:<18}{e.message.splitlines()[0]}" for e in run.events)
    RESULT.write_text(
        PAGE.format(
            model=Path(model).name if Path(model).exists() else model,
            today=date.today(),
            dspy=importlib.metadata.version("dspy"),
            run=run,
            seconds=seconds,
            events=events,
            table=table,
        ),
        encoding="utf-8",
    )


PAGE = """# DSPy with a provider for smallfirst

`python -m benchmarks.compatibility.dspy_provider FOLDER {model} {run.training_duration}`, {today}, 2 shared cores, Zen 5, 24 GB.
DSPy {dspy} as installed; the provider of docs/foundation_model.md.

**The run is {run.status.display_name}** after {seconds:.0f} s, registered as {run.register_to}/{run.model_version}.

{events}

## The model, called by a DSPy program through smallfirst's endpoint

| text | department |
|---|---|
{table}
"""


if __name__ == "__main__":
    main()
