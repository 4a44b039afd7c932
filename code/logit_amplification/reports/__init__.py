"""From records to tables, texts and pages. No torch."""
