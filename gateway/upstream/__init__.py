"""The upstream side: an HTTP client of its own, for GitLab and for issuers."""
