"""What a person sees of long work, and what a pipe must not."""

import contextlib
import os
import subprocess
import sys

import pytest
from fixtures.waiting import Clock, until

from smallfirst.base.progress import Activity, Progress

PROGRAM = """
from smallfirst.base.progress import Progress
Progress()
from tqdm.auto import tqdm
list(tqdm(range(3)))
"""


BAR = """
import time
from smallfirst.base.progress import Progress
progress = Progress(line_every_s=0.01)
with progress.step("measuring"), progress.bar("asking big", 8) as update:
    update(0, 8)
    update(4, 8)
    progress.log("half")
    time.sleep(0.3)
"""


def test_a_step_under_way_says_how_much_is_done_how_fast_and_how_long_the_rest_takes() -> None:
    clock = Clock()
    asking = Activity("asking big", 130, "rows", clock)
    assert str(asking) == "asking big: 0 of 130 rows, 0s so far"
    asking.report(10, 130)  # answered in an earlier run
    clock.now = 20.0
    assert str(asking) == "asking big: 10 of 130 rows, 20s so far"
    asking.report(50, 130)  # 40 rows in 20 s, 80 to come
    assert str(asking) == "asking big: 50 of 130 rows, 2.0/s, 40s left"
    clock.now = 50.0
    assert str(asking) == "asking big: 50 of 130 rows, 2.0/s, 10s left"
    asking.report(51, 130)
    clock.now = 850.0
    asking.report(52, 130)  # 42 rows in 850 s, 78 to come
    assert str(asking) == "asking big: 52 of 130 rows, 3.0/min, 26m 19s left"


def test_in_a_pipe_the_innermost_step_is_told_once_a_minute_without_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    with progress.step("measuring"), progress.bar("asking big", 8) as update:
        update(0, 8)
        clock.now = 59.0
        progress.tell()
        assert capsys.readouterr().err == ""
        update(4, 8)
        clock.now = 60.0
        progress.tell()
        progress.tell()
        assert capsys.readouterr().err == "[01:00] asking big: 4 of 8 rows, 4.1/min, 58s left\n"
        clock.now = 119.0
        progress.log("an answer was cut off")
        clock.now = 178.0
        progress.tell()
        assert capsys.readouterr().err == "[01:59] an answer was cut off\n"
    clock.now = 600.0
    progress.tell()
    assert capsys.readouterr().err == ""


def test_the_line_comes_by_itself_though_nothing_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(line_every_s=0.01).step("embedding"):
        assert until(lambda: capsys.readouterr().err).startswith("[00:00] embedding: 0s so far")
    with Progress(line_every_s=0.0, quiet=True).step("embedding"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal of POSIX")
def test_on_a_terminal_the_step_under_way_is_drawn_anew_and_cleared() -> None:
    ours, theirs = os.openpty()
    program = subprocess.Popen([sys.executable, "-c", BAR], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    parts: list[bytes] = []
    with contextlib.suppress(OSError):  # Linux says EIO where the other side is closed, macOS sends an empty read
        while part := os.read(ours, 65536):
            parts.append(part)
    os.close(ours)
    printed, _ = program.communicate(timeout=60)
    drawn = b"".join(parts).decode()
    assert (program.returncode, printed) == (0, b"")
    assert drawn.index("[00:00] half") < drawn.index("asking big: 4 of 8 rows")
    assert drawn.endswith("\r\033[K")


def test_in_a_pipe_libraries_draw_no_bars() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
