"""Foreign rows: what fits is not what certifies, and a task's own foreign requests certify alone."""

from __future__ import annotations

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.routing.acceptance import bundled_requests, foreign_rows


def texts(rows: Dataset) -> set[str]:
    return {example.text for example in rows.examples}


def test_fitting_and_certifying_rows_share_no_text() -> None:
    fitting, certifying = foreign_rows(None)
    assert texts(fitting) | texts(certifying) == texts(bundled_requests())
    assert not texts(fitting) & texts(certifying)
    assert min(len(fitting), len(certifying)) >= 40
    assert len(texts(bundled_requests())) == len(bundled_requests())  # no line twice


def test_open_ended_requests_of_the_task_certify_without_the_bundled_ones() -> None:
    made = tuple(
        Example(messages=(Message(role="user", content=f"please write essay {i}"),), answer="", shape="text")
        for i in range(60)
    )
    fitting, certifying = foreign_rows(Dataset(name="open", examples=made))
    assert texts(certifying) < {example.text for example in made}
    assert texts(fitting) == ({example.text for example in made} - texts(certifying)) | texts(bundled_requests())
