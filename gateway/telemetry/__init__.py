"""Metrics, the audit line, and logging."""
