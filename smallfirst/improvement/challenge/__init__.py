"""Retrain with harvested rows and replace the champion only if the challenger beats it.

    harvested rows ─ propose ─▶ reason ─ train, evaluate, gate ─▶ challenger ─ contest ─▶ champion, or not

The price is a whole run each time, and, since each looks at the same test rows, a bar that rises from one to the next.
"""

from smallfirst.improvement.challenge.challenge import CHALLENGER, ChallengeResult, challenge
from smallfirst.improvement.challenge.comparison import MARGIN, ChampionComparison, compare_to_champion
from smallfirst.improvement.challenge.proposal import Proposal, propose

__all__ = [
    "CHALLENGER",
    "ChallengeResult",
    "ChampionComparison",
    "MARGIN",
    "Proposal",
    "challenge",
    "compare_to_champion",
    "propose",
]
