"""Pure gradient transforms and how they compose."""
