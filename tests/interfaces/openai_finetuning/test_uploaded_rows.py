"""Uploaded files are read in a process of their own, whatever is in them."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from smallfirst.base.paths import home
from smallfirst.interfaces.jobs.job_folder import jobs_folder
from smallfirst.interfaces.openai_finetuning.uploaded_rows import read_upload

SIZE = 4 << 20
MAX_GROWTH = 72 << 20
"""Bytes that a server may grow by while one such file is uploaded and read: some copies of the upload."""
SHORTEST = b'{"prompt":"a","completion":"b"}\n'


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        pytest.param(b"x" * 90 + b"\n", "line 1: broken JSON", id="bad lines"),
        pytest.param(SHORTEST, "more than 100,000 rows", id="shortest valid rows"),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_of_the_server_is_bounded_whatever_the_upload_is(start_api: Any, piece: bytes, words: str) -> None:
    client = start_api().client()
    create(client, SHORTEST)  # imports what a request needs
    with peak_growth() as growth:
        error = create(client, piece * (SIZE // len(piece)))
    assert words in error.message
    assert growth() < MAX_GROWTH, f"{growth() >> 20} MiB"


def create(client: openai.OpenAI, content: bytes) -> openai.BadRequestError:
    id = client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
    with pytest.raises(openai.BadRequestError) as caught:  # were the first file good, the second would be missed
        client.fine_tuning.jobs.create(model="tiny", training_file=id, validation_file="file-1")
    return caught.value


@contextmanager
def peak_growth() -> Iterator[Any]:
    """Yield a function that returns by how much this process has grown at most, in bytes."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def sample() -> None:
        while not done.wait(0.005):
            sizes.append(resident())

    sizes, done = [resident()], threading.Event()
    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield lambda: max(sizes) - sizes[0]
    finally:
        done.set()
        sampler.join()


def test_a_file_of_more_rows_than_allowed_is_refused(start_api: Any) -> None:
    client = start_api(max_rows=12).client()
    error = create(client, SHORTEST * 12)
    assert (error.param, error.code) == ("validation_file", "file_not_found")
    error = create(client, SHORTEST * 13)
    assert (error.param, error.code) == ("training_file", "invalid_file")
    assert "more than 12 rows" in error.message


def test_a_file_that_takes_too_long_is_given_up(start_api: Any) -> None:
    client = start_api(read_timeout_s=1e-3).client().with_options(max_retries=0)
    id = client.files.create(file=("rows.jsonl", SHORTEST * 12), purpose="fine-tune").id
    with pytest.raises(
        openai.InternalServerError, match=r"rows\.jsonl could not be read now: it took more than"
    ) as caught:
        client.fine_tuning.jobs.create(model="tiny", training_file=id)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (503, "file_not_read", "training_file")
    assert [*jobs_folder().iterdir()] == []
    assert [path.name for path in (home() / "files").glob("*/*")] == [id]


def test_the_copy_names_its_rows_by_the_files_id(tmp_path: Path) -> None:
    file, copy = tmp_path / "rows.jsonl", tmp_path / "rows" / "train.json"
    file.write_bytes(SHORTEST * 3)
    read = asyncio.run(read_upload(file, "file-1", copy, max_rows=3, timeout_s=600))
    assert (read.n_rows, read.n_tokens, read.error) == (3, 3 * (2 * 5 + 0.5), "")
    kept = json.loads(copy.read_text())
    assert (kept["name"], {(row["path"], row["answer"]) for row in kept["examples"]}) == ("file-1", {("file-1", "b")})
