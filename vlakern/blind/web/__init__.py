"""Pages for the people of a study: operator, judges, adjudicator, analyst."""

from vlakern.blind.web.app import make_app
from vlakern.blind.web.desk import Desk

__all__ = ["Desk", "make_app"]
