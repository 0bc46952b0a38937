"""loopcore's road to the Nx AI Manager."""
