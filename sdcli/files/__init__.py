"""Reading and writing files: pictures and their metadata, maps, latents, names. Writes are complete or not at all."""
