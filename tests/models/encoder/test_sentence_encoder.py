"""The sentence encoder gives unit vectors, equal alone and in a batch, by mean pooling."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from smallfirst.models.encoder.sentence_encoder import REMEMBERED, SentenceEncoder, forget_texts, open_encoder


@pytest.fixture(scope="module")
def folder(tiny_encoder_folder: Path) -> Path:
    return tiny_encoder_folder


def test_vectors_are_means_over_the_texts_own_tokens_of_length_one_in_the_order_asked(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    encoder.batch_rows = 2
    texts = ["where is my card, it is late", "refund", "tell me more about your refund", "pin", "refund"]
    vectors = encoder.embed(texts)
    assert vectors.shape == (5, 32)
    assert vectors.dtype == np.float32
    for text, vector in zip(texts, vectors, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([encoder.tokenizer.encode(text)])
            mean = encoder.model(input_ids=ids).last_hidden_state[0].mean(0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_a_text_that_two_readers_ask_for_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, read = open_encoder(folder), []
    assert open_encoder(folder) is encoder

    def pooled(encoded: list[list[int]]) -> np.ndarray:
        read.extend(encoded)
        return np.ones((len(encoded), 2), dtype=np.float32) * len(encoded)

    monkeypatch.setattr(encoder, "_pooled", pooled)
    monkeypatch.setattr(encoder, "tokens", lambda text: [text])
    first, again = encoder.embed(["a", "b"]), encoder.embed(["b", "c"])
    assert (read, first.tolist(), again.tolist()) == ([["a"], ["b"], ["c"]], [[2, 2], [2, 2]], [[2, 2], [1, 1]])
    encoder.embed([str(i) for i in range(REMEMBERED)])
    encoder.embed(["a"])
    assert read.count(["a"]) == 2  # only the latest are kept
    forget_texts()
    encoder.embed(["a"])
    assert read.count(["a"]) == 3


def test_a_text_that_is_being_read_is_waited_for_and_one_that_fails_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, read, begun, go_on = SentenceEncoder(folder, remembered=8), [], threading.Event(), threading.Event()

    def pooled(encoded: list[list[str]]) -> np.ndarray:
        read.extend(text for (text,) in encoded)
        begun.set()
        assert go_on.wait(30)
        if ["bad"] in encoded:
            raise ValueError("unreadable")
        return np.ones((len(encoded), 2), dtype=np.float32)

    monkeypatch.setattr(encoder, "_pooled", pooled)
    monkeypatch.setattr(encoder, "tokens", lambda text: [text])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(encoder.embed, ["a", "b"])
        assert begun.wait(30)
        second = pool.submit(encoder.embed, ["b", "a"])
        go_on.set()
        assert first.result(30).tolist() == second.result(30).tolist() == [[1, 1], [1, 1]]
    assert read == ["a", "b"]
    for _ in range(2):
        with pytest.raises(ValueError, match="unreadable"):
            encoder.embed(["c", "bad"])
    assert read == ["a", "b", "c", "bad", "c", "bad"]


def test_a_long_text_is_read_up_to_the_published_limit(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    text = "where is my card " * 90
    encoder = SentenceEncoder(copy)
    assert len(encoder.tokens(text)) == 12
    assert np.array_equal(*encoder.embed([text, text * 2]))
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    assert len(SentenceEncoder(copy).tokens(text)) == len(SentenceEncoder(folder).tokens(text)) == 256


def test_states_to_learn_from_are_those_that_are_read(folder: Path) -> None:
    encoder = SentenceEncoder(folder)
    encoded = [encoder.tokens(text) for text in ("tell me more about your refund", "pin", "where is my card")]
    states, mask = encoder.hidden_states(encoded)
    with torch.inference_mode():
        plain, own = encoder.hidden_states(encoded)
    assert states.requires_grad
    assert states.shape == plain.shape
    assert torch.equal(mask, own)
    torch.testing.assert_close(states * mask[..., None], plain * mask[..., None], atol=1e-5, rtol=1e-5)


def test_texts_are_read_without_torch_in_the_process(folder: Path) -> None:
    code = (
        "import json, sys; from importlib.machinery import PathFinder; find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *more: None if name.partition('.')[0] == 'torch' else find(name, *more)\n"
        "from pathlib import Path; from smallfirst.models.encoder.sentence_encoder import SentenceEncoder\n"
        f"print(SentenceEncoder.for_inference(Path({str(folder)!r})).embed(['where is my card']).tolist()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(SentenceEncoder(folder).embed(["where is my card"])[0], abs=1e-4)


def test_a_text_of_which_only_the_beginning_is_read_is_told_once(
    tiny_encoder_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = SentenceEncoder(tiny_encoder_folder)
    encoder.max_tokens = 4
    for text in ("card", "card " * 9, "pin " * 9):
        encoder.tokens(text)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tiny_encoder_folder} reads 4 tokens; of a longer text it reads the beginning"
    ]
