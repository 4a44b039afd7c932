"""From records to outcomes, intervals and tests. No torch at import."""
