"""Comparisons with peers on one machine, as ratios only. docs/performance.md has the results and how to repeat them."""
