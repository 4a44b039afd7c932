"""Run sweeps, and read, compare and analyse the runs that they leave in the journal."""
