"""After go-live: audits, drift, fallback."""
