"""Noise, and how a base classifier votes on noisy copies."""
