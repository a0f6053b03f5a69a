"""Credential to principal: gateway keys, GitLab tokens, anonymous callers."""
