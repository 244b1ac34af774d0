"""A cache as one HTML file that opens from disk: overview, warnings, a browser of its frames."""
