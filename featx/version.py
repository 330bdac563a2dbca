# The version of featx, which recipes and summaries carry.
"""Read by the build, too."""

__version__ = "0.1.0"
