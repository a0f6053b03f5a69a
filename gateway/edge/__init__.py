"""The downstream side: the only part that uses an HTTP server."""
