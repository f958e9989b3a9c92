"""Low-rank adapters (LoRA): their files, what they add to networks, and how they are trained."""
