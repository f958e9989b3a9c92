"""Versatile Diffusion: one network with a flow for each pair of what is given and what is made."""
