"""The engine behind the interfaces of other tools; docs/INTEGRATIONS.md says which to use."""
