"""Files that survive: local folders, locks, atomic writes, JSON."""
