"""Credential to principal: gateway keys, workload tokens, GitLab tokens, anonymous callers."""
