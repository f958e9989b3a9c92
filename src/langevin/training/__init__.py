"""Training: one loop (``loop.py``), and recipes that say what is special about each kind of training."""
