"""Experiments of the papers, on real data: scripts with seeds that print a table and JSON."""
