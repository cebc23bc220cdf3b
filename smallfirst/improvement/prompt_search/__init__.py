"""Search the large model's prompt on training and selection rows, within a budget."""

from smallfirst.improvement.prompt_search.search import PromptOptions, PromptSearchResult, tune_prompt

__all__ = ["PromptOptions", "PromptSearchResult", "tune_prompt"]
