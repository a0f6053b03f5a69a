"""Persistence behind the ports: memory, Redis, SQLite."""
