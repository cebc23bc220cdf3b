"""DSPy's DatabricksProvider, as it is installed, fine-tunes on this machine and asks the model that came out.

    pip install dspy "smallfirst[train]"
    python -m benchmarks.compatibility.dspy_provider FOLDER [MODEL [DURATION]]

MODEL is a base model as `fm.create` takes it, SmolLM2-135M-Instruct unless given. Rows are what DSPy's own ChatAdapter
makes of a signature and 16 examples. The provider uploads them to a volume, here a folder, creates the run and waits
until it is Completed; it looks once a minute. Then its next step, the deployment, is called to see where it stops, and
the registered model is served and asked by a DSPy program instead. Writes benchmarks/results/dspy_provider.md.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
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
from benchmarks.paths import RESULTS
from smallfirst.registry import versions
from smallfirst import load_model, serve
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.settings import ServeSettings
name = sys.argv[1]
model = load_model(versions.resolve(f"{name}/1").folder)
serve({name: model}, ledger=Ledger(Path("ledger.db").absolute()), settings=ServeSettings(port=int(sys.argv[2])))
"""


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    model, duration = [*sys.argv[2:], *("HuggingFaceTB/SmolLM2-135M-Instruct", "2ep")[len(sys.argv) - 2 :]]
    (folder / "volumes" / "main" / "claims" / "rows").mkdir(parents=True, exist_ok=True)
    os.environ["SMALLFIRST_VOLUMES"] = str(folder / "volumes")
    os.environ.setdefault("SMALLFIRST_HOME", str(folder / "home"))
    os.environ |= {"DSPY_CACHEDIR": str(folder / "dspy")}
    os.chdir(folder)

    import smallfirst.interfaces.databricks.sdk_shim  # noqa: F401, I001 - the one line that existing code needs
    import dspy
    from dspy.clients.databricks import DatabricksProvider
    from dspy.clients.utils_finetune import TrainDataFormat

    signature = dspy.Signature("text -> department")
    settings = {
        "train_data_path": "/Volumes/main/claims/rows/dspy",
        "register_to": REGISTER_TO,
        "task_type": "CHAT_COMPLETION",
        "training_duration": duration,
        "skip_deploy": True,
    }
    provider = DatabricksProvider()
    # DSPy 3.4.1: Provider.__init__ hides on each instance what the class says of itself.
    provider.finetunable, provider.TrainingJob = DatabricksProvider.finetunable, DatabricksProvider.TrainingJob
    lm = dspy.LM("databricks/desk", finetuning_model=model, provider=provider)
    began = time.monotonic()
    job = lm.finetune(rows(dspy, signature), TrainDataFormat.CHAT, dict(settings))
    result = job.result()
    job.thread.join()
    if isinstance(result, Exception):
        raise result
    seconds = time.monotonic() - began
    run = job.run
    print(f"{run.name} {run.status.display_name} after {seconds:.0f} s: {run.details}")
    where = deployment(DatabricksProvider)
    answers = asked(dspy, signature)
    write(model, run, seconds, where, answers, source=inspect.getsourcefile(DatabricksProvider) or "")


def rows(dspy: Any, signature: Any) -> list[dict[str, Any]]:
    """Chat rows as DSPy's bootstrapped fine-tuning makes them of a program's calls."""
    pairs = [(frame.format(thing), label) for frame in FRAMES for thing, label in LABELS.items()]
    adapter = dspy.ChatAdapter()
    return [
        adapter.format_finetune_data(signature, demos=[], inputs={"text": text}, outputs={"department": label})
        for text, label in pairs
    ]


def deployment(provider: Any) -> str:
    """What the provider's next step says here."""
    try:
        provider.deploy_finetuned_model(REGISTER_TO)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it went through"


def asked(dspy: Any, signature: Any) -> list[tuple[str, str]]:
    """(request, department) by a DSPy program that asks the registered model through the endpoint."""
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


def write(model: str, run: Any, seconds: float, where: str, answers: list[tuple[str, str]], *, source: str) -> None:
    """The result as a page."""
    told = "\n".join(f"| {text} | {label} |" for text, label in answers)
    events = "\n".join(f"    {e.time:%H:%M:%S}  {e.type:<18}{e.message.splitlines()[0]}" for e in run.events)
    where = "\n".join(f"    {line}" for line in where.splitlines())
    seal = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]
    RESULT.write_text(
        PAGE.format(
            model=Path(model).name if Path(model).exists() else model,
            today=date.today(),
            dspy=importlib.metadata.version("dspy"),
            sdk=importlib.metadata.version("databricks-sdk"),
            run=run,
            seal=seal,
            seconds=seconds,
            events=events,
            where=where,
            told=told,
        ),
        encoding="utf-8",
    )


PAGE = """# DSPy's Databricks provider, unmodified

`python -m benchmarks.compatibility.dspy_provider FOLDER {model} {run.training_duration}`, {today}, 2 shared cores, Zen 5, 24 GB.
DSPy {dspy}, its `clients/databricks.py` as installed (SHA-256 {seal}…), databricks-sdk {sdk}; no line of either was
changed.

**The provider's run is {run.status.display_name}** after {seconds:.0f} s, registered as
{run.register_to}/{run.model_version}. The provider looks once a minute; other work ran on the machine.

{events}

## Where it stops

With `skip_deploy=True` it ends there. Without, its next step asks Databricks for an endpoint:

{where}

## The model, asked by a DSPy program through smallfirst's endpoint

| text | department |
|---|---|
{told}
"""


if __name__ == "__main__":
    main()
