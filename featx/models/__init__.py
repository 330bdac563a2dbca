# From a model's name to a Pyramid: catalogue, weights, tracing, and the libraries that networks come from.
"""Turns a request for a model into a pyramid, which turns batches of pixels into NCHW maps.

This package knows nothing of image files, of runs on disk, or of its callers.
"""
