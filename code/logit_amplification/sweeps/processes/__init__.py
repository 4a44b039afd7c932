"""A sweep shared by several processes: who they are, and who makes what."""
