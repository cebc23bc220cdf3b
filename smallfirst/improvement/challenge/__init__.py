"""Retrain with harvested rows and replace the champion only if the challenger beats it."""

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
