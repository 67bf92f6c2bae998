"""Points to train at, and searches that choose them."""
