"""A small, deterministic GitLab for trying the gateway out."""
