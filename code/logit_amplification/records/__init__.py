"""What a run leaves on disk: the journal, claims and artifact files.

This folder does not import torch.
"""
