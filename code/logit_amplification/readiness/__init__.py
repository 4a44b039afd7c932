"""Will a model run here, and at which precision? Standard library only."""
