"""loopcore's road to Edge Impulse."""
