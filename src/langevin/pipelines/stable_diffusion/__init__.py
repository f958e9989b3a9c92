"""The family of Stable Diffusion: one file a pipeline, its arguments and its guiders."""
