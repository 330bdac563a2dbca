# Images times a model makes a run: what is to be done is done by all of the machine, in bounded memory.
"""In come items and a model; out go outcomes, which are written to a run.

This room knows nothing of the command line, or of what people do with a run afterwards.
"""
