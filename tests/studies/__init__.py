"""Published figures beside ours: what the studies in ``experiments`` are checked against."""
