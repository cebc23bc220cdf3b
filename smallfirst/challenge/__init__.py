"""A retrain as challenger: said why, trained with harvested rows, gated like any other, live only if it wins.

    harvested rows ─ propose ─▶ reason ─ train, evaluate, gate ─▶ challenger ─ contest ─▶ champion, or not

The price is a whole run each time, and, since each looks at the same test rows, a bar that rises from one to the next.
"""

from smallfirst.challenge.contest import MARGIN, Contest, contest
from smallfirst.challenge.proposal import Proposal, propose
from smallfirst.challenge.stage import CHALLENGER, ChallengeResult, challenge

__all__ = ["CHALLENGER", "ChallengeResult", "Contest", "MARGIN", "Proposal", "challenge", "contest", "propose"]
