"""Linear models on word n-grams or on a frozen sentence encoder."""
