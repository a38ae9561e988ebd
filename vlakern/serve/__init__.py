"""Policies over the network, in openpi's protocol."""

from vlakern.serve.client import ActionBroker, Client, ServerError
from vlakern.serve.remote import RemotePolicy

__all__ = ["ActionBroker", "Client", "RemotePolicy", "ServerError"]
