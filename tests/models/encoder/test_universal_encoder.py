"""The universal sentence encoder: converted from the package's arrays, and read text by text."""

import struct
from pathlib import Path

import numpy as np
import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.encoder.universal_encoder import CHUNKS, WIDTH, WINDOWS, convert


def field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value) & 127 | 128, len(value) >> 7]) + value


def package(folder: Path) -> Path:
    """Random arrays of the layers' shapes, and pieces for words of a and b."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.05, shape).astype(np.float32)

    arrays: dict[str, np.ndarray] = {f"q{i + 1}": rng.integers(0, 64, (1, 512), dtype=np.uint8) for i in range(CHUNKS)}
    arrays |= {"scale": np.full(CHUNKS, 0.03, np.float32), "lo": np.full(CHUNKS, -1, np.float32)}
    for n, _ in WINDOWS:
        arrays |= {f"proj{n}": drawn(512, WIDTH), f"proj_b{n}": drawn(WIDTH), f"ln_g{n}": drawn(WIDTH)}
        arrays |= {f"ln_b{n}": drawn(WIDTH), f"b1_{n}": drawn(WIDTH), f"b2_{n}": drawn(WIDTH)}
        arrays |= {f"w1_{n}": drawn(n * WIDTH, WIDTH), f"w2_{n}": drawn(n * WIDTH, WIDTH)}
    joined = 512 + len(WINDOWS) * WIDTH
    arrays |= {"ln_g": drawn(joined), "ln_b": drawn(joined), "cnn_W": drawn(joined, 320), "cnn_b": drawn(320)}
    arrays |= {"d0": drawn(320, 320), "d1": drawn(320, 320), "p1": drawn(320, 320), "d2": drawn(320, 320)}
    arrays |= {"d3": drawn(320, 512), "p3": drawn(320, 512), "eps": np.float32(1e-6)}
    np.savez(folder / "weights.npz", **arrays)
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab"]
    scored = (field(1, one.encode()) + b"\x15" + struct.pack("<f", -len(pieces) + len(one)) for one in pieces)
    (folder / "sp.model").write_bytes(b"".join(field(1, one) for one in scored) + field(3, field(2, EMPTY_MAP)))
    return folder


EMPTY_MAP = struct.pack("<I", 1024) + bytes(1024)
"""Of characters to replace: none."""


def test_each_text_is_read_by_itself_to_a_unit_vector(tmp_path: Path) -> None:
    encoder = SentenceEncoder.for_inference(convert(package(tmp_path), tmp_path / "converted"))
    assert encoder.tokens("ab  a") == [1, 3, 7, 6, 2]
    texts = ["a", "ab ab a", "b", "abba " * 9]
    together, alone = encoder.embed(texts), np.vstack([encoder.embed([text]) for text in texts])
    assert together.shape == (4, 512)
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    with pytest.raises(ConfigError, match=r"is read as it is.*not fine-tuned"):
        SentenceEncoder(tmp_path / "converted")
