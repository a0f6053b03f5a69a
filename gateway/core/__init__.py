"""The pure core: it decides, and touches nothing. No clock, socket, environment or log; ``now`` is an argument."""
