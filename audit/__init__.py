"""The audit around a training run: what makes a number believable."""
