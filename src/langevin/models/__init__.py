"""Networks. ``base.py`` loads and saves them; ``layers/`` is what they are made of; then one file per network."""
