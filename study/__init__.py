"""The study: what DVC runs. It imports the method, :mod:`srs`, which imports nothing of it."""
