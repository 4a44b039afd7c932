"""The sweep itself, and the runs that the journal holds."""
