"""The report of a run: one typed model (`model`) and its views (`markdown`, `text`, `plots`)."""
