"""Many generations side by side: slots that are refilled, and one step of all their rows."""
