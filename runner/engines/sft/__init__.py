"""The native engine: LoRA and full fine-tuning on TRL. Only inside/ imports torch."""
