# The command line: arguments to options, one call, and its result as text. The only package that uses typer and rich.
"""Turns arguments and signals into one call of the library, tables or JSON, and an exit status.

Only ``python -m featx`` and the ``featx`` command import this package.
"""
