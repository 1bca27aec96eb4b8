"""Measurements that others published, and the same systems simulated from their stated hardware."""
