# What people do with a run: check it, and search it.
"""Takes a finished run; returns findings, neighbours and pictures.

This package knows nothing of the command line, and changes a run only when asked to repair it.
"""
