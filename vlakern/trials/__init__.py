"""Statistics of success counts that are honest at small sample sizes."""

from vlakern.trials.intervals import wilson

__all__ = ["wilson"]
