"""Grouped blind evaluation of policies: plan, sealed allocation, record, report."""

from vlakern.blind.results import Analysis, ClosedStudy, Judgement, Model, Result, Voided

__all__ = ["Analysis", "ClosedStudy", "Judgement", "Model", "Result", "Voided"]
