"""The gate: declared thresholds, one module for each kind of check, and the verdict."""
