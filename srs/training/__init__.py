"""Training of classifiers for randomized smoothing."""
