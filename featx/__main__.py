# python -m featx
"""Run the command line."""

from featx.cli.main import main

if __name__ == "__main__":  # processes that images are read in import it under another name
    main()
