"""Logs without personal data: an exception may quote the request or the answer that it could not handle."""

from __future__ import annotations

import logging

from smallfirst.data.redaction import redact

_FORMAT = logging.Formatter()


class RedactingFilter(logging.Filter):
    """Redacts messages and tracebacks, and lets every record pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = redact(record.getMessage())
        if said.counts:
            record.msg, record.args = said.text, ()
        if record.exc_info and record.exc_info[0]:
            record.exc_text = redact(record.exc_text or _FORMAT.formatException(record.exc_info)).text
        return True


def redact_logs() -> None:
    """Redact what this process writes through the handlers that it has now, and where it has none."""
    for handler in (*logging.root.handlers, logging.lastResort):
        if handler and not any(isinstance(one, RedactingFilter) for one in handler.filters):
            handler.addFilter(RedactingFilter())
