"""Latent diffusion before Stable Diffusion: Rombach et al. 2022 (2112.10752)."""
