"""A page on this machine that shows runs while they train, and afterwards. Reads their output folders only."""
