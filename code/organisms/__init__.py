"""Model organisms: small adapters with a harmless, known behaviour, and the truth about it."""
