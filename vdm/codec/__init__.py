"""A lossless codec for every model, with files as large as the ELBO (bits-back: Townsend et al. 2019)."""
