"""The results of sweeps: tables, statistics, pictures."""
