# timm's networks: described without weights, traced, filled, and measured for the catalogue.
"""In comes a request for a timm model; out goes a description, and a network that holds its weights.

This room knows nothing of other libraries; `featx.models.libraries` finds it by name.
"""
