"""The simulator: trace + profile + policy -> Result.  Start at ``run.py``; the meaning is in SPECIFICATION.md."""
