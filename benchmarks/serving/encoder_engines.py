"""Engines of sentence encoders on short texts: likeness to float32, and processor time a text, in one process.

    SMALLFIRST_DATA=… python -m benchmarks.serving.encoder_engines ENCODER ENGINE… [--rows 64] [--rounds 3]

ENCODER is a name of the catalogue or a folder; engines: pytorch, pytorch-bf16, ctranslate2, ctranslate2-int8,
onnxruntime, onnxruntime-int8, openvino, openvino-bf16, openvino-int8; the last five need their packages (and onnx,
onnxscript, nncf). Texts are training rows of Banking77. One thread, so that processor time is the engine's own and
other work on the machine counts little. Prints rows of the table in benchmarks/results/encoder_engines.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.serving.encoders_ours import rows
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.ctranslate2_engine import CTranslate2Encoder
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder

States = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Hidden states (texts, tokens, width) of ids and mask (texts, tokens), int64."""
N_CALIBRATION = 300
"""Texts that OpenVINO's quantisation (with SmoothQuant) looks at."""


def padded(encoded: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask."""
    ids = np.zeros((len(encoded), max(map(len, encoded))), dtype=np.int64)
    for own, row in zip(ids, encoded, strict=True):
        own[: len(row)] = row
    return ids, (np.arange(ids.shape[1]) < np.array([[len(row)] for row in encoded])).astype(np.int64)


class Body(torch.nn.Module):
    """A model that returns its last hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden states."""
        states: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return states


def pytorch(model: Any) -> States:
    """Transformers as it is."""

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = Body(model)(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()
        return found

    return run


def ctranslate2(folder: Path, int8: bool) -> States:
    """Our engine."""
    encoder = CTranslate2Encoder(folder, int8=int8)
    return lambda ids, mask: encoder.hidden_states([row[kept == 1] for row, kept in zip(ids, mask, strict=True)])


def onnxruntime(model: Any, example: Any, int8: bool) -> States:
    """ONNX Runtime; int8 is its dynamic quantisation, weights by channel."""
    import onnxruntime as runtime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folder = Path(tempfile.mkdtemp())
    texts, tokens = torch.export.Dim("texts", min=1, max=1024), torch.export.Dim("tokens", min=2, max=512)
    shapes = {name: {0: texts, 1: tokens} for name in ("input_ids", "attention_mask")}
    inputs = tuple(map(torch.from_numpy, example))
    names = list(shapes)
    torch.onnx.export(
        Body(model), inputs, str(folder / "a.onnx"), input_names=names, dynamic_shapes=shapes, external_data=False
    )
    if int8:
        quantize_dynamic(folder / "a.onnx", folder / "b.onnx", weight_type=QuantType.QInt8, per_channel=True)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(folder / ("b.onnx" if int8 else "a.onnx")), options)
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def openvino(model: Any, example: Any, precision: str, calibration: Sequence[Any]) -> States:
    """OpenVINO; int8 by NNCF."""
    import openvino as ov

    shapes = [(name, [-1, -1], ov.Type.i64) for name in ("input_ids", "attention_mask")]
    inputs = dict(zip(("input_ids", "attention_mask"), map(torch.from_numpy, example), strict=True))
    converted = ov.convert_model(Body(model), example_input=inputs, input=shapes)
    if precision == "int8":
        import nncf

        data = nncf.Dataset([{"input_ids": ids, "attention_mask": mask} for ids, mask in calibration])
        converted = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=N_CALIBRATION)
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32", "INFERENCE_NUM_THREADS": 1}
    request = ov.Core().compile_model(converted, "CPU", hint).create_infer_request()
    return lambda ids, mask: request.infer([ids, mask])[0]


def make(name: str, encoder: SentenceEncoder, encoded: Sequence[Sequence[int]]) -> States:
    """The engine of a name."""
    library, _, precision = name.partition("-")
    example = padded(encoded[:3])
    if library == "pytorch":
        model = SentenceEncoder(encoder.folder).model
        return pytorch(model.bfloat16() if precision else model)
    if library == "ctranslate2":
        return ctranslate2(encoder.folder, bool(precision))
    if library == "onnxruntime":
        return onnxruntime(encoder.model, example, bool(precision))
    return openvino(encoder.model, example, precision, [padded([ids]) for ids in encoded[-N_CALIBRATION:]])


def vectors(states: States, encoded: Sequence[Sequence[int]]) -> np.ndarray:
    """Unit vectors."""
    ids, mask = padded(encoded)
    mean = (states(ids, mask)[:, : ids.shape[1]] * mask[..., None]).sum(1)
    found: np.ndarray = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return found


def milliseconds(states: States, encoded: Sequence[Sequence[int]], batch: int) -> float:
    """Processor milliseconds a text, sorted by length."""
    ordered = sorted(encoded, key=len)
    began = time.process_time()
    for start in range(0, len(ordered), batch):
        vectors(states, ordered[start : start + batch])
    return 1000 * (time.process_time() - began) / len(ordered)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("encoder")
    parser.add_argument("engines", nargs="+")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    encoder = SentenceEncoder(find_weights(wanted.encoder))
    texts = [example.text for example in rows("train").examples[::7]]
    encoded = [encoder.tokens(text) for text in texts]
    measured, exact = encoded[: wanted.rows], encoder.embed(texts[: wanted.rows])
    engines, starts = {}, {}
    for name in wanted.engines:
        began = time.perf_counter()
        engines[name] = make(name, encoder, encoded)
        starts[name] = time.perf_counter() - began
        for batch in (1, 8, 32):  # shapes that were not seen yet are slower
            milliseconds(engines[name], measured, batch)
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(wanted.rounds):
        for name, states in engines.items():
            for batch in (1, 8, 32):
                found.setdefault((name, batch), []).append(milliseconds(states, measured, batch))
    for name, states in engines.items():
        likeness = (np.concatenate([vectors(states, [ids]) for ids in measured]) * exact).sum(1)
        times = " | ".join(f"{statistics.median(found[name, batch]):.2f}" for batch in (1, 8, 32))
        print(
            f"| {wanted.encoder} | {name} | {times} | {likeness.mean():.4f} | {likeness.min():.4f} | {starts[name]:.1f} |"
        )


if __name__ == "__main__":
    main()
