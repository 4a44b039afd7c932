"""The same engine under the interfaces of other tools; docs/INTEGRATIONS.md tells which to take."""
