"""Weights are loaded ready to answer, never run code of their own, and have a fingerprint that follows every bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smallfirst.base.errors import ConfigError
from smallfirst.models import export as parity
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.local import weights
from smallfirst.models.local.tokenizer import load_tokenizer
from smallfirst.models.local.weights import choose_device, load_causal, weights_fingerprint


def test_a_model_is_loaded_in_bfloat16_ready_to_answer(tiny_folder: Path) -> None:
    model, tokenizer = load_causal(tiny_folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert tokenizer.bos_token == "<s>"


@pytest.mark.parametrize("code", ["config.json", "tokenizer_config.json", "evil.py"])
@pytest.mark.parametrize("load", [load_causal, load_tokenizer, parity._load, SentenceEncoder])
def test_weights_that_bring_code_are_refused_by_every_loader(
    tiny_folder: Path, tmp_path: Path, load: Callable[[Path], object], code: str
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "evil")
    if code == "evil.py":
        (folder / code).write_text("class Model: pass")
    else:
        settings = json.loads((folder / code).read_text()) if (folder / code).exists() else {}
        (folder / code).write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": ["evil.Model", None]}}))
    with pytest.raises(ConfigError, match="code that comes with weights is never run"):
        load(folder)


def test_transformers_loads_nothing_but_through_one_function() -> None:
    package = Path(weights.__file__).parents[2]
    calls = {path.name: path.read_text().count(".from_pretrained(") for path in package.rglob("*.py")}
    assert {name: n for name, n in calls.items() if n} == {"weights.py": 1}


def test_the_fingerprint_changes_with_any_weight_and_with_their_order(tiny_folder: Path) -> None:
    model, _ = load_causal(tiny_folder)
    seen = {weights_fingerprint(model)}
    assert seen == {weights_fingerprint(load_causal(tiny_folder)[0])}
    assert len(next(iter(seen))) == 16
    tensors = list(model.parameters())
    with torch.no_grad():
        for tensor in tensors:
            tensor.view(-1)[3] += 0.5
            seen.add(weights_fingerprint(model))
        rows = model.model.embed_tokens.weight
        rows[[4, 5]] = rows[[5, 4]]
    assert len(seen | {weights_fingerprint(model)}) == len(tensors) + 2


def test_the_device_is_the_one_named_else_the_gpu_of_this_process_else_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert choose_device() == torch.device("cuda:2")
    for name in ("cpu", "cuda:3"):
        monkeypatch.setenv("SMALLFIRST_DEVICE", name)
        assert choose_device() == torch.device(name)


@pytest.mark.parametrize(
    ("name", "rule"), [("gpu", "is no device"), ("cuda:0", "no such device"), ("meta", "no such device")]
)
def test_a_device_that_is_not_here_is_refused(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_DEVICE", name)
    with pytest.raises(ConfigError, match=rule):
        choose_device()


PROGRAM = """
from smallfirst.models.local.weights import release_memory

def rss():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1])

blocks = [bytearray(100_000) for _ in range(2000)]  # 200 MB in blocks that glibc keeps
kept = blocks[-1]  # the last one keeps the heap from shrinking by itself
del blocks
before = rss()
release_memory()
print(before - rss())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_leave_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000  # kB
