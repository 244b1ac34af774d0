"""bevcask: run the heavy teacher once, distil camera detectors from its cache.

Importing the package loads neither torch nor zarr; each room loads what it needs.
"""

__version__ = "0.1.0"
