"""Pictures and reports of what is in a cache."""
