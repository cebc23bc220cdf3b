"""Memory that nothing refers to goes back to the operating system."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
from smallfirst.models.memory import release_memory

def rss():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1])

blocks = [bytearray(100_000) for _ in range(2000)]  # 200 MB in blocks that glibc keeps
kept = blocks[-1]  # the last one keeps the heap from shrinking by itself
del blocks
before = rss()
release_memory()
print(before - rss())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_blocks_leave_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000  # kB
