"""Retrain with harvested rows and replace the champion only if the challenger beats it."""
