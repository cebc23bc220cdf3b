"""What a person sees of long work, and what a pipe must not."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

import pytest

from smallfirst.progress import format_duration

PROGRAM = """
from smallfirst.progress import Progress
Progress()
import torch  # brings tqdm in, whose bars ask once
from tqdm.auto import tqdm
list(tqdm(range(3)))
"""


def test_in_a_pipe_libraries_draw_no_bars() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (61, "1m 1s"), (3600, "1h 0m"), (86_400 + 7200, "1d 2h"), (-3, "0s")],
)
def test_a_duration_is_written_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text
