"""Dense passage retrieval over HTTP: its own environment, and nothing of the rest of this repository."""
