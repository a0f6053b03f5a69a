"""The upstream side: the only user of an HTTP client."""
