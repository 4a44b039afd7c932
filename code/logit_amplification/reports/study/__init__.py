"""The document and the figures of the study, from the tables in data/study."""
