"""The upstream side: our own HTTP client, for GitLab and for identity issuers."""
