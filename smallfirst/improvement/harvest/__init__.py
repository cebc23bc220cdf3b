"""Turn served and judged answers into training rows."""
