"""Decode many generations in one batch: slots that are refilled, and one step for all rows."""
