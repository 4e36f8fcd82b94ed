"""The mathematics: knows tensors and policies, not training loops."""
