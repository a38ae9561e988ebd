"""Policies over the network, in openpi's protocol."""

from vlakern.serve.client import ActionBroker, Client, ServerError

__all__ = ["ActionBroker", "Client", "ServerError"]
