"""An assistant's next function call: the function from words, each argument chosen among the values that were read."""
