"""Files as they are read and written: pictures and their metadata, maps, latents, names, whole or not at all."""
