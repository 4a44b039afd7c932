"""Score generations, and turn the scores into tables over families of prompt pairs.

At import, only `judge` needs torch.
"""
