"""Rooms 1-5: find, place, cut, encode and keep, draw."""
