"""What every test gets: a state folder of its own, no network, no keys; and on demand a tiny real model."""

import asyncio
import gc
import inspect
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from fixtures.entry_points import register_entry_points

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.tasks.classify import Classify

# `server` before those that import it; `finetuning_api` imports others, which pytest must see first.
FIXTURES = """
cli server dashboard deployment gate jobs light_process logs models pages postgresql ray_cluster registry
report takeover assistant training vllm_server warm_processes finetuning_api
"""
pytest_plugins = [f"fixtures.{name}" for name in FIXTURES.split()]

register_entry_points()
# One thread: on matrices this small a second one only waits, for seconds when the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine is no failure of the code: the first draw may import PyTorch.
hypothesis.settings.register_profile("explore", deadline=None)
# The same examples in every run, so that a failure is a change's own; HYPOTHESIS_PROFILE=explore draws others.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine runs in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}))
    return True


def pytest_collection_finish() -> None:
    """What was imported is no garbage; a collector that visits all of it takes a quarter of a run's processor time."""
    gc.collect()
    gc.freeze()


UNSET = "/nonexistent/no-test-chose-a-state-folder"

THINGS = {
    "card_arrival": ("card", "envelope", "parcel"),
    "refund_request": ("refund", "money back", "return"),
    "exchange_rate": ("exchange", "euro rate", "currency"),
    "lost_pin": ("pin", "secret code", "passcode"),
}
FRAMES = (
    "where is my {}",
    "I want to know about the {} please",
    "can you help with a {}",
    "the {} again, it is late",
    "tell me more about your {}",
    "hello, {} question",
)


@pytest.fixture(scope="session", autouse=True)
def _no_outside_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the machine's own settings reaches a test; a module may still choose its own store."""
    caches = tmp_path_factory.mktemp("caches")
    with tempfile.TemporaryDirectory(prefix="sf") as folder, pytest.MonkeyPatch.context() as patch:
        # A fine-tune waits for those of others with the same folder of temporary files.
        os.chmod(folder, 0o711)  # PostgreSQL is another user's
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("SMALLFIRST_HOME", UNSET)
        patch.setenv("XDG_CACHE_HOME", str(caches))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _new_stores_are_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow makes its tables once (1.3 s of processor time); a further new SQLite store gets a copy of them."""
    from mlflow.store.db import utils

    made, make = tmp_path_factory.mktemp("store") / "new.db", utils._initialize_tables

    def initialize(engine: Any) -> None:
        if engine.url.get_backend_name() != "sqlite" or not engine.url.database:
            return make(engine)
        if made.exists():
            copy(made, engine.url.database)
        else:
            make(engine)
            copy(engine.url.database, made)

    def copy(source: Any, target: Any) -> None:
        with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
            read.backup(written)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", initialize)
        yield


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state folder for this test alone, unless its module set up one to share."""
    if os.environ.get("SMALLFIRST_HOME", UNSET) == UNSET:
        monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / ".smallfirst"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def toy_task() -> Classify:
    """Four labels whose words are single tokens of the tiny tokenizer."""
    return Classify(name="toy", labels=tuple(THINGS))


@pytest.fixture(scope="session")
def toy_rows() -> Dataset:
    """48 training rows, separable by one word: four of the six sentence frames."""
    return _rows("train.jsonl", FRAMES[:4])


@pytest.fixture(scope="session")
def toy_selection() -> Dataset:
    """24 rows of the same things in the two sentence frames that training does not show."""
    return _rows("selection.jsonl", FRAMES[4:])


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers, hidden size 32, 4 heads on 2 key heads: seeded weights, real tokenizer."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = _tiny_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A BERT of 2 layers and hidden size 32 with the tiny tokenizer."""
    import torch
    import transformers

    made = tmp_path_factory.mktemp("encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture
def tiny_fp32(tiny_folder: Path) -> tuple[Any, Any]:
    """The tiny model in fp32, where sums differ by rounding only, and its tokenizer."""
    from smallfirst.models.local.weights import load_causal

    model, tokenizer = load_causal(tiny_folder)
    return model.float(), tokenizer


def _rows(path: str, frames: tuple[str, ...]) -> Dataset:
    pairs = [(f.format(thing), label) for f in frames for label, ts in THINGS.items() for thing in ts]
    examples = tuple(
        Example(messages=(Message(role="user", content=text),), answer=label, shape="label", path=path, line=line)
        for line, (text, label) in enumerate(pairs, start=1)
    )
    return Dataset(name=path, examples=examples)


def _tiny_tokenizer() -> Any:
    """Byte-level BPE with a start and an end token, trained on the toy sentences and on label words."""
    import tokenizers
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sentences = [f.format(thing) for f in FRAMES for things in THINGS.values() for thing in things]
    words = " card arrival payment refund request exchange rate lost A B C D =>"
    bpe.train_from_iterator([*sentences, *[words] * 20], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
