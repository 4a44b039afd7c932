"""From records to outcomes, and to tables over families of pairs. No torch at import."""
