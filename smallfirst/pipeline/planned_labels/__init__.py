"""Unlabelled traffic as the small model answers it, and the certificate of rows that a sampling plan chose."""
