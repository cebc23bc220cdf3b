"""Run a module in a process that ends with the call."""

from __future__ import annotations

import asyncio
import sys

from smallfirst.base.paths import child_environment


class ProcessFailed(Exception):
    """A process gave no result; the message says why, for clients too."""


async def run_module(module: str, *arguments: str, timeout_s: float) -> bytes:
    """Run `python -m module ARGUMENTS`, without secrets in its environment, and return what it prints.

    It never outlives the call. Raise ProcessFailed if it has not ended within `timeout_s`, or with an error.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=child_environment(),
    )
    try:
        async with asyncio.timeout(timeout_s):
            printed, _ = await process.communicate()
    except TimeoutError:
        raise ProcessFailed(f"it took more than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ProcessFailed("its process ended without a result")
    return printed
