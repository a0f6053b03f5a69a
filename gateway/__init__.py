"""A reverse-proxy API gateway and token broker for self-managed GitLab."""

__version__ = "0.1.0"
