"""What shows whether it learns: held-out loss, validation pictures, grids."""
