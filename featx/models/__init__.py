# From a model's name to a Pyramid: catalogue, weights, tracing, and the libraries that networks come from.
"""In comes a request for a model; out goes a pyramid that turns batches of pixels into NCHW maps.

This room knows nothing of image files, of runs on the disk, or of who asks.
"""
