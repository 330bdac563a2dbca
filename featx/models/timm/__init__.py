# timm's networks: described without weights, traced, filled, and measured for the catalogue.
"""Turns a request for a timm model into a description, and a network with its weights.

This package knows nothing of other libraries; `featx.models.libraries` finds it by name.
"""
