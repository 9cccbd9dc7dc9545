"""What we measure ourselves with; not installed. Run from a clone: `python -m experiments.NAME --help`."""
