"""What a person sees of long work, and what a pipe must not."""

from __future__ import annotations

import subprocess
import sys

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
