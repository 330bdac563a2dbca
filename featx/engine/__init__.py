# Runs a model on images, using the whole machine, in bounded memory.
"""Takes items and a model; yields outcomes, which are written to a run.

This package knows nothing of the command line, or of what people do with a run afterwards.
"""
