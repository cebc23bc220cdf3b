"""Test the server with three public suites for OpenAI's API, against a real server with a real small model.

    python -m benchmarks.compatibility.conformance [--work FOLDER] [--examples 50]     # about ten minutes on two cores

    openai-python   its own tests of chat completions, completions, models and embeddings, from its source distribution
    llm-comply      JSON schemas and stream semantics of chat completions
    schemathesis    random requests generated from our /openapi.json; answers are checked against it

The page lists what a suite asks for and the server does not offer, with the reason. Each suite has its own environment,
created under FOLDER at the first run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections import Counter
from datetime import date
from pathlib import Path

from benchmarks.paths import RESULTS

RESULT = RESULTS / "conformance.md"
OPENAI = "3.57.0"
KEY = "My API Key"  # what openai-python's tests send
PORT = 8431
TESTS = ("chat/test_completions.py", "test_completions.py", "test_models.py", "test_embeddings.py")
SKIPPED = {
    "all_params": "sends every parameter at once, among them tools, audio, functions, best_of and dimensions, which "
    "are refused here by name",
    "stored": "reading, changing and deleting stored chat completions: nothing is stored here for clients to read back",
    "delete": "deleting a model: versions are rolled back in the registry, never through the endpoint",
}
STRICT_EMBEDDINGS = (
    "The client asks for base64 where no encoding is named and decodes it after its own strict check, which knows only "
    "floats: under that check base64 as OpenAI sends it fails in the same way."
)
SCHEMATHESIS_NOTE = "`/v1/score` refuses what is generated for it, as expected: a chat model has no labels, which no schema of a body says."
COMPLY_SKIPPED = {
    "chat-tool-calling": "models here call no tools",
    "chat-image-input": "models here read text",
    "chat-reasoning-summary": "the suite runs it for reasoning models alone",
}


def environment(work: Path) -> Path:
    """The suites' own environment."""
    python = work / "env" / "bin" / "python"
    if not (work / "env" / ".done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(work / "env")], check=True)
        wanted = [f"openai[aiohttp]=={OPENAI}", "llm-comply==0.5.0", "schemathesis>=4.32,<5", "pytest>=9.0.3"]
        wanted += ["pytest-asyncio>=1.4", "inline-snapshot>=0.28", "rich>=13.7", "trio>=0.22.2", "pytest-xdist>=3.6"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
        (work / "env" / ".done").touch()
    return python


def sdk_tests(work: Path, python: Path) -> Path:
    """Return the folder of openai-python's source distribution."""
    folder = work / f"openai-{OPENAI}"
    if not folder.exists():
        command = [str(python), "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "openai", "-d", str(work)]
        subprocess.run([*command, f"openai=={OPENAI}"], check=True)
        with tarfile.open(work / f"openai-{OPENAI}.tar.gz") as archive:
            archive.extractall(work, filter="data")
        # The tests must run against the installed package, as for a user.
        (folder / "src").rename(folder / "src.unused")
    return folder


def skipped(name: str) -> str:
    """Return the reason for skipping a test; empty for one that runs."""
    if "all_params" in name:
        return "all_params"
    if re.search(r"chat/test_completions.*_(retrieve|update|list|delete)\b", name.split("[")[0]):
        return "stored"
    return "delete" if re.search(r"test_models.*_delete\b", name.split("[")[0]) else ""


def run_sdk(work: Path, python: Path) -> tuple[Counter[str], Counter[str], list[str]]:
    """Return passed and failed by file, skipped by reason, and the names of failed tests."""
    folder = sdk_tests(work, python)
    files = [f"tests/api_resources/{name}" for name in TESTS]
    env = {**os.environ, "TEST_API_BASE_URL": f"http://127.0.0.1:{PORT}/v1"}
    listing = subprocess.run(
        [str(python), "-m", "pytest", "--collect-only", "-q", "-n", "0", "-p", "no:cacheprovider", *files],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = [line for line in listing.stdout.splitlines() if "::" in line]
    assert names, listing.stdout + listing.stderr
    reasons = Counter(reason for name in names if (reason := skipped(name)))
    chosen = [name for name in names if not skipped(name)]
    out = subprocess.run(
        [str(python), "-m", "pytest", "-q", "-rA", "--tb=line", "-n", "0", "-p", "no:cacheprovider", *chosen],
        cwd=folder, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (work / "sdk.log").write_text(out.stdout + out.stderr)
    seen = re.findall(r"^(PASSED|FAILED|ERROR) (\S+?)::", out.stdout, re.MULTILINE)
    counts = Counter(f"{Path(path).relative_to('tests/api_resources')} {outcome.lower()}" for outcome, path in seen)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", out.stdout, re.MULTILINE)
    return counts, reasons, failed


def run_comply(work: Path) -> list[dict[str, object]]:
    """llm-comply's results, one a test."""
    command = [str(work / "env" / "bin" / "llm-comply"), "--format", "openai-chat", "--json"]
    command += ["-u", f"http://127.0.0.1:{PORT}/v1", "-k", KEY, "-m", "small"]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    (work / "comply.log").write_text(out.stdout + out.stderr)
    found = json.loads(
        out.stdout[out.stdout.index("{") if out.stdout.lstrip().startswith("{") else out.stdout.index("[") :]
    )
    results = found if isinstance(found, list) else found["results"]
    return [dict(one) for one in results]


def run_schemathesis(work: Path, n_examples: int) -> tuple[str, str]:
    """Return the counts and the findings that schemathesis prints at its end."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}
    )
    (work / "openapi.json").write_bytes(urllib.request.urlopen(request).read())
    checks = "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance"
    command = [str(work / "env" / "bin" / "st"), "run", str(work / "openapi.json"), "--url", f"http://127.0.0.1:{PORT}"]
    command += ["--checks", checks, "-H", f"Authorization: Bearer {KEY}", "-n", str(n_examples), "--seed", "1"]
    command += ["--request-timeout", "120"]  # a busy machine is slow at eight answers of the longest length
    out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    (work / "schemathesis.log").write_text(out.stdout + out.stderr)
    summary = out.stdout[out.stdout.rfind("SUMMARY") :]
    return summary, out.stdout


def started(work: Path) -> subprocess.Popen[bytes]:
    """The server, once it answers."""
    (work / "ledger.db").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.compatibility.conformance_server", str(PORT), KEY]
    server = subprocess.Popen([*command, str(work / "ledger.db")], stdout=(work / "server.log").open("wb"), stderr=2)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health")
        except OSError:
            time.sleep(0.2)
        else:
            return server
    raise SystemExit("the server did not start")


def page(sdk: tuple[Counter[str], Counter[str], list[str]], comply: list[dict[str, object]], schema: str) -> str:
    """The page of results."""
    counts, reasons, failed = sdk
    lines = ["# Conformance with OpenAI's API", ""]
    lines += [
        f"`python -m benchmarks.compatibility.conformance`, {date.today()}, {platform.machine()}, {os.cpu_count()} cores,"
    ]
    lines += [
        f"Python {platform.python_version()}. SmolLM2-135M-Instruct behind the names that the suites ask for.",
        "",
    ]
    lines += [f"## openai-python {OPENAI}, its own tests", "", "| file | passed | failed |", "|---|---|---|"]
    for name in TESTS:
        bad = counts[f"{name} failed"] + counts[f"{name} error"]
        lines.append(f"| {name} | {counts[f'{name} passed']} | {bad} |")
    lines += ["", "Not run, and why:", ""]
    lines += [f"- {n} tests: {SKIPPED[reason]}" for reason, n in sorted(reasons.items())]
    lines += [f"- failed: `{name}`" for name in failed]
    if any("test_embeddings" in name for name in failed):
        lines += ["", STRICT_EMBEDDINGS]
    lines += ["", "## llm-comply 0.5.0, chat completions", "", "| test | result |", "|---|---|"]
    for one in comply:
        id = str(one.get("id") or one.get("test_id"))
        outcome = COMPLY_SKIPPED.get(id)
        shown = str(one.get("status") or one.get("outcome"))
        lines.append(f"| {id} | {shown}{f', as expected: {outcome}' if outcome else ''} |")
    lines += [
        "",
        "## schemathesis on our own OpenAPI document",
        "",
        "```",
        schema.strip(),
        "```",
        "",
        SCHEMATHESIS_NOTE,
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the three suites and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path(".smallfirst") / "conformance")
    parser.add_argument("--examples", type=int, default=50)
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    python = environment(work)
    server = started(work)
    try:
        sdk = run_sdk(work, python)
        print(dict(sdk[0]), flush=True)
        comply = run_comply(work)
        print([(one.get("id") or one.get("test_id"), one.get("status")) for one in comply], flush=True)
        schema, _ = run_schemathesis(work, options.examples)
        print(schema, flush=True)
    finally:
        server.terminate()
        server.wait(timeout=60)
    RESULT.write_text(page(sdk, comply, schema))


if __name__ == "__main__":
    main()
