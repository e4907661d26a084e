"""Jobs that are kept on disk: accepted once they are there, and ended once."""
