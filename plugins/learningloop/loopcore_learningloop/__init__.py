"""loopcore's road to the Zauberzeug Learning Loop."""
