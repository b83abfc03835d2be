"""The standard streams, and what a person at a terminal sees."""
