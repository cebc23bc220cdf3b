"""The verbs for the books: the ledger itself, and what is made of it for others; a module each."""
