"""An image tower before a language model (LLaVA): its config, the model composed, its projector."""
