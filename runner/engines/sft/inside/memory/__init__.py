"""The memory of a step, traced on fake tensors. Imports torch when called."""
