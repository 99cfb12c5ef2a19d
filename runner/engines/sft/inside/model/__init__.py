"""The model of a plan: weights, adapters, image tower, limits, stand-ins."""
