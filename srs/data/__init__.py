"""Images: named data sets, and pictures from files."""
