"""Check whether a model will run on this machine, and at which precision.

Standard library only.
"""
