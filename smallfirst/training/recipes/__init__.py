"""Recipes: what a run learns from and how it is validated, found by name.

`task`, `encoder` and `tagging` train on a task of task.yaml, `chat` on conversations, `text` on plain text. A package
adds one under the entry-point group `smallfirst.recipes`.
"""

from __future__ import annotations

from typing import Any

from smallfirst.base.extensions import Registry

RECIPES: Registry[Any] = Registry(
    "smallfirst.recipes",
    {
        "task": "smallfirst.training.recipes.recipe:TaskRecipe",
        "encoder": "smallfirst.training.recipes.encoders:EncoderRecipe",
        "tagging": "smallfirst.training.recipes.marking:TaggingRecipe",
        "chat": "smallfirst.training.recipes.chat:ChatRecipe",
        "text": "smallfirst.training.recipes.chat:PretrainingRecipe",
    },
    noun="recipe",
)
"""Classes that make a Recipe, by name."""
