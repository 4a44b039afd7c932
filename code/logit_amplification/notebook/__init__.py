"""What the notebook shows: the explorer and the table of results."""
