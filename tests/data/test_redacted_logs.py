"""What a process logs is redacted, in messages and in tracebacks."""

from __future__ import annotations

import io
import logging

import pytest

from smallfirst.data.redacted_logs import redact_logs


def test_messages_and_tracebacks_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    redact_logs()
    redact_logs()
    assert len(handler.filters) == 1
    log = logging.getLogger("smallfirst.somewhere")
    log.warning("no answer to %s", "ann@example.com")
    try:
        raise ValueError("not a number: 4111 1111 1111 1111")
    except ValueError:
        log.exception("failed")
    log.warning("%d of %d", 1, 2)
    lines = written.getvalue()
    assert "no answer to [EMAIL]\n" in lines
    assert "ValueError: not a number: [CARD]" in lines
    assert lines.endswith("1 of 2\n")
    assert "4111" not in lines
