# The command line: arguments to options, one call, and its result as text. The only room that knows typer and rich.
"""In come arguments and signals; out go one call of the library, tables or JSON, and an exit status.

Nothing imports this room but ``python -m featx`` and the ``featx`` command.
"""
