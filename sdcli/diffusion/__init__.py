"""The method: context, noise, the denoising loop and the autoencoder. Knows nothing of the models on this machine."""
