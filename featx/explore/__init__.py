# What people do with a run: check it, search it, sample it, and look at it.
"""Takes a finished run; returns findings, neighbours, tables, pictures and pages.

This package knows nothing of the command line, and changes a run only when asked to repair it.
"""
