"""What the machine has to give: read from files of the system's own form, and measured."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.training import hardware
from smallfirst.training.hardware import FreeMemory, encoder_pace, free_memory, system_memory, training_dtype

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nSwapFree:         50 kB\n"
KB = 1024


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def container(folder: Path, most: str, used: int, files: int) -> Path:
    folder.mkdir()
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 7\n")
    return folder


def test_memory_that_can_be_had_counts_and_swap_stands_beside_it(meminfo: Path, tmp_path: Path) -> None:
    assert system_memory(meminfo, tmp_path / "none") == FreeMemory(600 * KB, 50 * KB, gpu=False)


def test_a_container_may_allow_less_and_gives_back_what_files_take(meminfo: Path, tmp_path: Path) -> None:
    small = container(tmp_path / "small", "300000", used=200_000, files=50_000)
    assert system_memory(meminfo, small) == FreeMemory(300_000 - 200_000 + 50_007, 0, gpu=False)


@pytest.mark.parametrize(("most", "used"), [("max", 10), ("99999999", 10)])
def test_a_container_without_a_limit_or_a_far_one_changes_nothing(
    meminfo: Path, tmp_path: Path, most: str, used: int
) -> None:
    large = container(tmp_path / "large", most, used=used, files=0)
    assert system_memory(meminfo, large) == FreeMemory(600 * KB, 50 * KB, gpu=False)


def test_an_overdrawn_container_has_nothing_left(meminfo: Path, tmp_path: Path) -> None:
    full = container(tmp_path / "full", "1000", used=9000, files=0)
    assert system_memory(meminfo, full) == FreeMemory(0, 0, gpu=False)


def test_where_the_system_tells_no_more_its_size_is_taken(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\n")
    free = system_memory(tmp_path / "meminfo", tmp_path)
    here = free_memory()
    assert free is not None
    assert here is not None
    assert free == system_memory(tmp_path / "missing", tmp_path)
    assert free.bytes >= here.bytes > 0


def test_the_pace_is_measured_on_the_texts_that_are_given(tiny_encoder_folder: Path) -> None:
    texts = ("where is my card", "a fee", "my card was lost")
    pace = encoder_pace(tiny_encoder_folder, texts)
    encoder = SentenceEncoder(tiny_encoder_folder)
    assert pace.read_s > 0
    assert pace.train_s > 0
    assert pace.tokens == sum(len(encoder.tokens(text)) for text in texts) / 3
    assert pace.parameters == sum(p.numel() for p in encoder.model.parameters())


@pytest.mark.parametrize(
    ("of_bf16", "of_fp32", "dtype"),
    [(3.0, 1.0, torch.float32), (1.2, 1.0, torch.bfloat16), (1.0, 2.0, torch.bfloat16)],
)
def test_an_encoder_learns_in_fp32_where_the_processor_multiplies_it_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, of_bf16: float, of_fp32: float, dtype: torch.dtype
) -> None:
    times = itertools.accumulate(itertools.cycle([0.0, of_bf16, 0.0, of_fp32]))
    monkeypatch.setattr(hardware.time, "process_time", lambda: next(times))
    assert training_dtype.__wrapped__() == dtype
