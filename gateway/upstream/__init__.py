"""The upstream side: an HTTP client of our own, for GitLab and for issuers."""
