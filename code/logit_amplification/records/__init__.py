"""What a run leaves on disk: the journal and the artifact files. No torch."""
