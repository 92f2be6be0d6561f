"""The ELBO as a file: a lossless codec for every model (bits-back coding; Townsend et al. 2019)."""
