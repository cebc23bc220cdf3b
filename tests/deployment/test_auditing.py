"""An answer of the large model says whether it differs from the draft that was not sure enough."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from deployment.test_audited_router import Setting

from smallfirst.models.protocol import Completion, Request
from smallfirst.serving.ledger.ledger import Ledger


@pytest.mark.parametrize("streamed", [False, True])
def test_an_escalated_answer_says_whether_it_differs_from_the_draft(streamed: bool, tmp_path: Path) -> None:
    setting = Setting(Ledger(tmp_path / "ledger.db"))

    async def ask() -> Completion:
        if not streamed:
            return await setting.live.complete(Request.ask("where is my card"))
        chunks = [chunk async for chunk in setting.live.stream(Request.ask("where is my card"))]
        assert chunks[-1].completion is not None
        return chunks[-1].completion

    def differs() -> tuple[str, bool]:
        route = asyncio.run(ask()).route
        assert route is not None
        assert not any(step.differs for step in route.trail[:-1])
        return route.stage, route.trail[-1].differs

    assert differs() == ("small", False)
    setting.small.confidence = 0.1
    assert differs() == ("large", False)
    setting.small.wrong = True
    assert differs() == ("large", True)
    setting.large.down = True
    assert differs() == ("small", False)  # the draft was used after all
    setting.ledger.close()
