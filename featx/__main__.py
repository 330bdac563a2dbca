# python -m featx
"""Run the command line."""

from featx.cli import main

main()
