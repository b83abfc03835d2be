"""The commands, one module each: options to recipe, run, print."""
