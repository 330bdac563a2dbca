# What people do with a run: check it, and search in it.
"""In comes a finished run; out go findings, neighbours and pictures.

This room knows nothing of the command line, and changes a run only where it is asked to repair it.
"""
