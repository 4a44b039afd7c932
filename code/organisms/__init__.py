"""Model organisms: small adapters with a harmless behaviour whose true rate is known."""
