"""Everything that determines a picture, and what can be checked of it. Imports nothing heavy."""
