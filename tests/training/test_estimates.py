"""Memory of a fine-tune by hand and by PyTorch's own count, and who is refused; its time and the words for both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.training import TOY_SIZE as SIZE

from smallfirst.base.errors import TrainingError
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.training import estimates
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.config import TrainConfig
from smallfirst.training.estimates import (
    MicroBatchShape,
    Pace,
    Range,
    TrainingEstimate,
    ValidationWork,
    activation_bytes,
    base_bytes,
    count_epochs,
    estimate_training,
    fits_in_fp32,
    largest_micro_batch,
    least_bytes,
    needs_checkpointing,
    peak_memory,
    require_memory,
    suggest_smaller_setting,
    trainable_parameters,
)
from smallfirst.training.hardware import FreeMemory

FULL, LORA = TrainConfig(), TrainConfig(method="lora", lora_rank=2)
LARGE = SIZE.model_copy(update={"parameters": 10**9, "embedding": 10**8, "linear_ends": 10**6})


def test_weights_that_move_are_counted_by_method() -> None:
    assert trainable_parameters(SIZE, FULL) == 1000
    assert trainable_parameters(SIZE, LORA) == 100


def test_a_token_keeps_what_the_formula_says() -> None:
    token = 16 * 8 + 4 * 8 + 4 * 4 + 8 * 16  # 304
    assert activation_bytes(SIZE, FULL, MicroBatchShape(3, 10, 0), gpu=True) == 3 * 10 * 4 * token
    assert activation_bytes(SIZE, FULL, MicroBatchShape(3, 10, 0), gpu=False) == 3 * 10 * 4 * (token + 6 * 2 * 10)
    assert activation_bytes(SIZE, FULL, MicroBatchShape(1, 257, 0), gpu=False) == 257 * 4 * token
    assert activation_bytes(SIZE, FULL, MicroBatchShape(0, 0, 7), gpu=False) == 7 * 10 * 25


def test_the_peak_is_the_larger_of_two_moments() -> None:
    nothing = MicroBatchShape(0, 0, 0)
    # 2 bf16 + 4 master + 8 moments, and a gradient: fp32 while the optimizer works.
    assert peak_memory(SIZE, FULL, nothing).at_least == 18_000
    read = MicroBatchShape(10, 10, 0)
    kept = activation_bytes(SIZE, FULL, read, gpu=True)
    assert peak_memory(SIZE, FULL, read, gpu=True) == (16_000, kept)
    assert peak_memory(SIZE, FULL, read, gpu=True, several=True) == (20_000, kept)
    # Adapters: the base in bf16, 12 bytes for each of theirs, and the blocks a second time once they are merged.
    assert peak_memory(SIZE, LORA, nothing).at_least == 2_000 + 1_200 + 1_600
    for kept in (LORA.model_copy(update={"adapters": "kept"}), LORA):
        assert peak_memory(SIZE, kept, nothing, gpu=True).at_least == 2_000 + 1_200 + 400
    # The blocks in 4 bits, with an 8-bit scale for 64 weights and an fp32 one for 256 scales; the embedding in bf16.
    packed = peak_memory(SIZE, LORA.model_copy(update={"method": "qlora"}), nothing, gpu=True)
    assert packed.at_least == pytest.approx(400 + 800 * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 1_200 + 400)


def test_checkpointed_layers_keep_their_inputs_and_one_layer_whole() -> None:
    read, config = MicroBatchShape(3, 10, 2_000), TrainConfig(gradient_checkpointing=True)
    logits = 1_024 * 10 * 25  # of more targets than this the rest are computed again
    assert activation_bytes(SIZE, config, read, gpu=True) == 3 * 10 * (4 * 2 * 8 + 304) + logits
    assert activation_bytes(SIZE, FULL, read, gpu=True) == 3 * 10 * 4 * 304 + logits


def test_layers_are_checkpointed_by_themselves_only_where_they_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TokenizedRow(tuple(range(101)), 100)] * 4
    read, several = largest_micro_batch(rows, SIZE, FULL)
    peak = peak_memory(SIZE, FULL, read, several=several)
    need = peak.weights - 2 * SIZE.parameters + 1.3 * peak.read  # the base is loaded when it is asked
    free_is(monkeypatch, need + 1)
    assert not needs_checkpointing(SIZE, FULL, rows)
    free_is(monkeypatch, need - 1)
    assert needs_checkpointing(SIZE, FULL, rows)
    assert not needs_checkpointing(SIZE, TrainConfig(gradient_checkpointing=False), rows)
    assert not needs_checkpointing(None, FULL, rows)
    free_is(monkeypatch, 1e12)
    assert needs_checkpointing(SIZE, TrainConfig(gradient_checkpointing=True), rows)


def test_the_range_holds_the_least_and_the_program() -> None:
    found = peak_memory(SIZE, FULL, MicroBatchShape(10, 10, 0), gpu=True)
    assert found.at_least < found.span.low < found.span.high
    assert found.span.high == pytest.approx(1.3 * (16_000 + found.read) + 600e6)


def test_a_run_in_fp32_needs_room_for_twice_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TokenizedRow(tuple(range(30)), 20)]

    def fits(n_bytes: float, **settings: Any) -> bool:
        monkeypatch.setattr(estimates, "free_memory", lambda: FreeMemory(int(n_bytes), 0, gpu=False))
        return fits_in_fp32(SIZE, TrainConfig(**settings), rows)

    read, _ = largest_micro_batch(rows, SIZE, FULL)
    in_bf16 = peak_memory(SIZE, FULL, read).weights - base_bytes(SIZE, FULL)
    assert not fits(in_bf16 + 4 * SIZE.parameters)
    assert fits(in_bf16 + 1.3 * (2 * peak_memory(SIZE, FULL, read).read + 6 * SIZE.parameters) + 1)
    assert not fits(1e12, method="lora")


@pytest.mark.parametrize(
    ("width", "method", "within"),
    [(32, "full", 0.03), (64, "full", 0.03), (300, "full", 0.03), (32, "lora", 0.1)],
)
def test_the_formula_is_what_pytorch_keeps(tmp_path: Path, width: int, method: Any, within: float) -> None:
    model, size = seeded_llama(tmp_path)
    config = TrainConfig(method=method)
    if method != "full":
        from smallfirst.training.causal_lm import add_adapters

        model = add_adapters(model, config)
    rows = 4
    formula = activation_bytes(size, config, MicroBatchShape(rows, width, 0), gpu=False)
    assert kept_by(model, rows, width) == pytest.approx(formula, rel=within)


def test_pytorch_keeps_the_inputs_of_checkpointed_layers(tmp_path: Path) -> None:
    from smallfirst.training.device import checkpoint_layers

    model, size = seeded_llama(tmp_path)
    whole = kept_by(model, 4, 300)
    checkpoint_layers(model)
    found = kept_by(model, 4, 300)
    rest = whole - activation_bytes(size, FULL, MicroBatchShape(4, 300, 0), gpu=False)
    assert found == pytest.approx(4 * 300 * size.layers * 2 * size.hidden + rest, rel=0.4)
    assert found < whole / 10


def seeded_llama(folder: Path) -> tuple[Any, BaseSize]:
    """A Llama wide enough that what the formula leaves out, a few bytes a token, is small."""
    import torch
    import transformers

    from smallfirst.models.local import packed_rows

    shape = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attn_implementation=packed_rows.register(),
    )
    model = transformers.LlamaForCausalLM(shape).to(torch.bfloat16)
    model.save_pretrained(folder)
    size = read_base_size(folder)
    assert size is not None
    return model, size


def kept_by(model: Any, rows: int, width: int) -> int:
    """Bytes of distinct storages that are no weights and kept for the backward pass of one forward pass."""
    import torch

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=torch.ones(rows, width, dtype=torch.long), use_cache=False)
    assert hidden.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_the_read_that_keeps_most_is_found() -> None:
    long, short = TokenizedRow(tuple(range(101)), 100), TokenizedRow(tuple(range(11)), 5)
    found, several = largest_micro_batch([short] * 40 + [long] * 2, SIZE, TrainConfig(batch_tokens=200))
    assert (found.rows, found.width, several) == (2, 100, False)
    found, several = largest_micro_batch([short] * 40, SIZE, TrainConfig(batch_tokens=200, micro_tokens=50))
    assert (found, several) == (MicroBatchShape(5, 10, 30), True)


def free_is(monkeypatch: pytest.MonkeyPatch, n_bytes: float, swap: float = 0) -> None:
    monkeypatch.setattr(estimates, "free_memory", lambda: FreeMemory(int(n_bytes), int(swap), gpu=False))


def test_a_run_that_cannot_fit_is_refused_with_what_would(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = read_base_size(tiny_folder)
    assert size is not None
    need = least_bytes(size, FULL)
    free_is(monkeypatch, need - 1)
    with pytest.raises(TrainingError) as caught:
        require_memory(("tiny", tiny_folder), FULL)
    assert str(caught.value).startswith("full fine-tune of tiny (0 M weights) needs at least 0.0 GB of memory")
    assert "next: method: lora" in str(caught.value)
    free_is(monkeypatch, need + 1)
    require_memory(("tiny", tiny_folder), FULL)
    free_is(monkeypatch, 1, swap=1e12)  # it may be used before a run is refused
    require_memory(("tiny", tiny_folder), FULL)


def test_nobody_is_refused_on_what_is_not_known(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_is(monkeypatch, 1)
    require_memory(("unknown", tmp_path), FULL)
    monkeypatch.setattr(estimates, "free_memory", lambda: None)
    require_memory(("tiny", tiny_folder), FULL)


def test_the_way_out_is_the_nearest_that_fits() -> None:
    assert suggest_smaller_setting(LARGE, FULL, FreeMemory(int(7e9), 0, gpu=False)).startswith("method: lora (rank 16)")
    # 18 bytes a weight at the least.
    assert suggest_smaller_setting(LARGE, FULL, FreeMemory(int(0.18e9), 0, gpu=False)) == (
        "a smaller base model: 10 M weights at most would fit"
    )


def test_an_encoder_is_trained_in_fp32_and_offered_no_adapters() -> None:
    encoder = SIZE.model_copy(update={"causal": False})
    # 4 weights + 4 master + 8 moments + 4 gradient.
    assert peak_memory(encoder, FULL, MicroBatchShape(10, 10, 0)).at_least == 20_000
    assert suggest_smaller_setting(encoder, FULL, FreeMemory(1, 0, gpu=False)).startswith("a smaller base model")


def rows_of(*lengths: int) -> list[TokenizedRow]:
    """Rows of so many tokens, the last of which is the target."""
    return [TokenizedRow(tuple(range(n)), n - 1) for n in lengths]


@pytest.mark.parametrize(("duration", "epochs"), [("3ep", 3.0), ("10ba", 2.0), ("45tok", 0.5)])
def test_a_duration_is_so_many_epochs(duration: str, epochs: float) -> None:
    assert count_epochs(TrainConfig(duration=duration), 5, 90) == epochs


def test_time_is_tokens_over_the_pace_with_validation_after_each_epoch() -> None:
    config, pace = TrainConfig(duration="2ep", batch_tokens=32), Pace(8.0, "as said")
    rows = rows_of(11, 11, 11, 11)  # three rows of 10 a batch
    found = estimate_training("tiny", SIZE, config, rows, ValidationWork(0, 0), pace)
    assert (found.epochs, found.steps, found.tokens) == (2, 4, 80)
    assert (found.seconds.low, found.seconds.high) == (pytest.approx(10 / 1.3), pytest.approx(10 * 1.3))
    assert (found.parameters, found.trained, found.pace) == (1000, 1000, "as said")
    assert found.free_bytes is found.cost_usd is None
    assert found.memory_bytes.low > found.least_bytes
    exam = estimate_training("tiny", SIZE, config, rows, ValidationWork(30, 6), pace)  # 2 × 26 tokens as trained
    assert exam.seconds.high == pytest.approx(1.3 * (80 + 2 * (30 + 8 * 6) / 3) / 8)


def test_a_run_that_may_stop_early_has_a_lower_low_end() -> None:
    whole, early = (
        estimate_training("t", SIZE, config, rows_of(11), ValidationWork(0, 0), Pace(8.0, "")).seconds
        for config in (TrainConfig(duration="10ep"), TrainConfig(duration="10ep", patience=1))
    )
    assert (early.low, early.high) == (pytest.approx(whole.low / 5), whole.high)


NEEDS = TrainingEstimate(
    base="tiny",
    parameters=134_515_008,
    trained=134_515_008,
    method="full",
    epochs=4,
    steps=616,
    tokens=570_672,
    seconds=Range(low=1500, high=2600),
    pace="as said",
    memory_bytes=Range(low=3.16e9, high=4.51e9),
    least_bytes=3e9,
    free_bytes=15_800_000_000,
    cost_usd=Range(low=0.0417, high=0.0722),
)


def test_the_words_claim_no_more_than_is_known() -> None:
    assert NEEDS.in_words == [
        "fine-tune of tiny: full, 135 M weights",
        "  work    570,672 tokens in 616 steps, 4 epochs",
        "  time    about 25 to 45 min (as said)",
        "  memory  about 3.2 to 4.5 GB; 15.8 GB is free",
        "  cost    about $0.042 to $0.072",
    ]
    less = NEEDS.model_copy(update={"trained": 4_884_480, "free_bytes": None, "cost_usd": None})
    assert less.in_words[0] == "fine-tune of tiny: full, 135 M weights, 4.9 M of them trained"
    assert less.in_words[-1] == "  memory  about 3.2 to 4.5 GB"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (2880, 54_000, "50 min to 15 h"),
        (20, 70, "20 to 70 s"),
        (0.2, 0.9, "1 s"),
        (5400, 9000, "1.5 to 2.5 h"),
        (3e5, 9e5, "85 to 250 h"),
    ],
)
def test_times_are_rounded(low: float, high: float, words: str) -> None:
    needs = NEEDS.model_copy(update={"seconds": Range(low=low, high=high)})
    assert needs.in_words[2] == f"  time    about {words} (as said)"
