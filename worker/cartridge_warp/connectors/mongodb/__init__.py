"""The MongoDB source: change stream and snapshot of one or more databases."""

from cartridge_warp.connectors.mongodb.source import MongoDBSourceConnector
from cartridge_warp.connectors.mongodb.unit import MongoDBUnit

__all__ = ["MongoDBSourceConnector", "MongoDBUnit"]
