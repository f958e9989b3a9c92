"""Where :func:`langevin.prompts.edited.edited_conditions` lived before."""

from langevin.prompts.edited import edited_conditions as edited_conditions
