"""The downstream side: the only user of an HTTP server."""
