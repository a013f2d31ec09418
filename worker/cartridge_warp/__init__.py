"""cartridge-warp: change data capture from MongoDB into PostgreSQL, without losing a row."""

__version__ = "0.1.0"
