"""Sentences of the report: verdict, advice, outlook."""
