"""Everything that determines a picture, and its validation. Imports nothing heavy."""
