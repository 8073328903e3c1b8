"""From votes to certificates."""
